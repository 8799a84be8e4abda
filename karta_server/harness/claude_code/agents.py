"""The agents that Claude Code knows from files."""

from pathlib import Path

from karta import v1
from karta_server.harness.agent_files import AgentFile, read_agent_files
from karta_server.harness.contract import HarnessSettings


def config_folder(settings: HarnessSettings) -> Path | None:
    """Return the folder of the user's own configuration, None when the environment names none."""
    chosen, home = settings.environment.get("CLAUDE_CONFIG_DIR"), settings.environment.get("HOME")
    if chosen:
        return Path(chosen)
    return Path(home) / ".claude" if home else None


def read_agents(settings: HarnessSettings) -> list[v1.Agent]:
    """Return the agents by name: the project's, and those of the user that it does not redefine."""
    agents: dict[str, v1.Agent] = {}
    for file in read_agent_files(settings.project / ".claude" / "agents"):
        _add(agents, file, file.path.relative_to(settings.project).as_posix())
    own = config_folder(settings)
    for file in read_agent_files(own / "agents") if own else []:
        _add(agents, file, "")
    return [agents[name] for name in sorted(agents)]


def _add(agents: dict[str, v1.Agent], file: AgentFile, path: str) -> None:
    name, model, tools = file.text("name"), file.text("model"), file.texts("tools")
    # Claude Code itself passes over files without these two: notes between the agents.
    if name and file.text("description") and name not in agents:
        agents[name] = v1.Agent(
            name=name,
            description=file.text("description"),
            harness="claude_code",
            model="" if model == "inherit" else model,
            tools=[] if tools == ["*"] else tools,
            path=path,
            frontmatter=file.json,
        )
