"""The SQL verifier: does the answer's query find the same rows as the reference's?"""

from quintain.verifiers.rules.sql.verifier import SqlOptions, SqlVerifier, make_sql_verifier

__all__ = ["SqlOptions", "SqlVerifier", "make_sql_verifier"]
