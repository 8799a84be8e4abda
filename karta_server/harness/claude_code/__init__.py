"""Claude Code as a harness."""

from karta_server.harness.claude_code.adapter import ClaudeCodeAdapter

__all__ = ["ClaudeCodeAdapter"]
