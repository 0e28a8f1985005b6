"""Environments: the interface, the built-in environments, their server and client.

Importing this is cheap: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintain.envs.base import Action as Action
    from quintain.envs.base import Environment as Environment
    from quintain.envs.base import Observation as Observation
    from quintain.envs.base import Step as Step
    from quintain.envs.builtin.calculator import CalculatorEnv as CalculatorEnv
    from quintain.envs.builtin.code import CodeEnv as CodeEnv
    from quintain.envs.builtin.data import DataEnv as DataEnv
    from quintain.envs.builtin.gymnasium import GymnasiumEnv as GymnasiumEnv
    from quintain.envs.builtin.harbor import HarborEnv as HarborEnv
    from quintain.envs.builtin.math import MathEnv as MathEnv
    from quintain.envs.builtin.reasoning_gym import ReasoningGymEnv as ReasoningGymEnv
    from quintain.envs.builtin.shell import ShellTasksEnv as ShellTasksEnv
    from quintain.envs.builtin.shop import ShopEnv as ShopEnv
    from quintain.envs.builtin.textarena import TextArenaEnv as TextArenaEnv
    from quintain.envs.builtin.twenty_questions import TwentyQuestionsEnv as TwentyQuestionsEnv
    from quintain.envs.chat import ChatEnv as ChatEnv
    from quintain.envs.chat import ModelUser as ModelUser
    from quintain.envs.chat import ScriptedUser as ScriptedUser
    from quintain.envs.chat import User as User
    from quintain.envs.chat import UserModel as UserModel
    from quintain.envs.chat import UserReply as UserReply
    from quintain.envs.chat import transcript as transcript
    from quintain.envs.check import check_environment as check_environment
    from quintain.envs.client import EnvClient as EnvClient
    from quintain.envs.client import RemoteEnv as RemoteEnv
    from quintain.envs.judging import JudgingEnv as JudgingEnv
    from quintain.envs.local import LocalClient as LocalClient
    from quintain.envs.mcp_tools import McpTools as McpTools
    from quintain.envs.registry import list_envs as list_envs
    from quintain.envs.registry import resolve as resolve
    from quintain.envs.serving.limits import EnvironmentLimits as EnvironmentLimits
    from quintain.envs.serving.serve import serve_env as serve_env
    from quintain.envs.shell import ShellEnv as ShellEnv
    from quintain.envs.shell import WorkFolder as WorkFolder
    from quintain.envs.single_turn import SingleTurnEnv as SingleTurnEnv
    from quintain.envs.tools import Toolbox as Toolbox
    from quintain.envs.tools import ToolEnv as ToolEnv
    from quintain.envs.tools import ToolError as ToolError
    from quintain.envs.tools import ToolResult as ToolResult
    from quintain.envs.tools import tool as tool
    from quintain.envs.wrappers import ObservationLimit as ObservationLimit
    from quintain.envs.wrappers import ShapedReward as ShapedReward
    from quintain.envs.wrappers import TurnLimit as TurnLimit
    from quintain.failure import Failure as Failure
    from quintain.failure import FailureError as FailureError
    from quintain.messages import Message as Message
    from quintain.messages import assistant as assistant
    from quintain.messages import system as system
    from quintain.messages import user as user
    from quintain.task import EndlessTasks as EndlessTasks
    from quintain.task import Task as Task
    from quintain.task import TaskSource as TaskSource
    from quintain.verdict import Verdict as Verdict

_HOMES = {
    "quintain.envs.base": ("Action", "Environment", "Observation", "Step"),
    "quintain.envs.builtin.shell": ("ShellTasksEnv",),
    "quintain.envs.builtin.shop": ("ShopEnv",),
    "quintain.envs.builtin.textarena": ("TextArenaEnv",),
    "quintain.envs.builtin.twenty_questions": ("TwentyQuestionsEnv",),
    "quintain.envs.chat": ("ChatEnv", "ModelUser", "ScriptedUser", "User", "UserModel", "UserReply", "transcript"),
    "quintain.envs.check": ("check_environment",),
    "quintain.envs.client": ("EnvClient", "RemoteEnv"),
    "quintain.envs.builtin.calculator": ("CalculatorEnv",),
    "quintain.envs.builtin.code": ("CodeEnv",),
    "quintain.envs.builtin.data": ("DataEnv",),
    "quintain.envs.judging": ("JudgingEnv",),
    "quintain.envs.serving.limits": ("EnvironmentLimits",),
    "quintain.envs.local": ("LocalClient",),
    "quintain.envs.builtin.gymnasium": ("GymnasiumEnv",),
    "quintain.envs.builtin.harbor": ("HarborEnv",),
    "quintain.envs.builtin.math": ("MathEnv",),
    "quintain.envs.builtin.reasoning_gym": ("ReasoningGymEnv",),
    "quintain.envs.mcp_tools": ("McpTools",),
    "quintain.envs.registry": ("list_envs", "resolve"),
    "quintain.envs.serving.serve": ("serve_env",),
    "quintain.envs.shell": ("ShellEnv", "WorkFolder"),
    "quintain.envs.single_turn": ("SingleTurnEnv",),
    "quintain.envs.tools": ("ToolEnv", "ToolError", "ToolResult", "Toolbox", "tool"),
    "quintain.envs.wrappers": ("ObservationLimit", "ShapedReward", "TurnLimit"),
    "quintain.failure": ("Failure", "FailureError"),
    "quintain.messages": ("Message", "assistant", "system", "user"),
    "quintain.task": ("EndlessTasks", "Task", "TaskSource"),
    "quintain.verdict": ("Verdict",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
