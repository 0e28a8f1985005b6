"""Text to trees and shapes: every character is read, or nothing is. Standard library only."""
