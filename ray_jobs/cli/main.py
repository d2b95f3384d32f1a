"""`orpo`: every command of the project under one name.

Each command calls what its module calls (`python -m ray_jobs.tune`, `python -m serving.promote`, …): the
same settings, the same exit codes (ray_jobs.errors).
"""

import contextlib
import io
import json
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli import options, results, shipped
from ray_jobs.cli.processes import hand_over
from ray_jobs.command import end, main
from ray_jobs.errors import StageFailed, UserError

app = typer.Typer(
    name="orpo",
    help="Preference-tune a small instruct model, prove that it is better, serve the better one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def entry(program: str = "orpo") -> None:
    """The console script. A user's mistake is one line and an exit code; a bug keeps its traceback."""
    try:
        app(prog_name=program)
    except (UserError, StageFailed) as error:
        if "--json" in sys.argv:
            sys.stdout.write(results.dump(results.failure([str(error)], error.exit_code)))
        sys.exit(end(str(error), error.exit_code))


def show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"orpo {results.version()}\n")
        raise typer.Exit


@app.callback()
def orpo(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Preference-tune a small instruct model, prove that it is better, serve the better one."""


def run_stages(
    stage: str | None,
    config: Path,
    check: bool,
    changes: list[str] | None,
    forced: list[str] | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """What `python -m ray_jobs.STAGE` does; with `--json` its result alone goes to standard output."""
    argv = [str(config)]
    argv += ["--check"] * check + ["--verbose"] * verbose
    for name in options.known_stages(forced or []):
        argv += ["--force", name]
    for change in changes or []:
        argv += ["--set", change]
    if not as_json:
        raise typer.Exit(main(stage, argv))

    def work() -> results.Answer:
        from ray_jobs.config import load_config

        plan = io.StringIO()
        with contextlib.redirect_stdout(plan if check else sys.stderr):
            code = main(stage, argv)
        if code not in (0, 1):
            return results.Answer(code)
        read = load_config(config, changes or [])
        found = results.planned(read, plan.getvalue()) if check else results.run_result(read)
        return results.Answer(code, data=found)

    raise typer.Exit(results.tell(work, as_json=True))


def stage_command(name: str, stage: str | None, summary: str) -> None:
    """Adds a command that runs one stage, or all."""

    def command(
        config: options.ConfigFile,
        check: options.Check = False,
        changes: options.Changes = None,
        force: options.Forced = None,
        verbose: options.Verbose = False,
        as_json: options.AsJson = False,
    ) -> None:
        run_stages(stage, config, check, changes, force, verbose, as_json)

    app.command(name, help=summary)(command)


STAGE_COMMANDS: tuple[tuple[str, str | None, str], ...] = (
    ("run", None, "Run every stage of CONFIG; what is done is skipped, what was interrupted goes on."),
    ("tune", "tune", "Search for the best adapter: Ray Tune over ORPO trials."),
    ("export", "export", "Base and best adapter as GGUF files of one recipe."),
    ("generate", "generate", "Answers of base and candidate to the evaluation prompts."),
    ("judge", "judge", "Scores of both models' answers."),
    ("verdict", "verdict", "Paired statistics, decision and report."),
)
for _name, _stage, _summary in STAGE_COMMANDS:
    stage_command(_name, _stage, _summary)


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=shipped.complete)] = "local",
    folder: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to.")] = Path("configs"),
) -> None:
    """Copy a config that comes with the project (own-data, local, llama-3.2-1b, …), to be changed and run."""
    path = shipped.copy_config(name, folder)
    sys.stdout.write(f"{path}\nnext: {shipped.next_step(name, path)}\n")


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(case_sensitive=False)]) -> None:
    """Print the completion script of a shell: `source <(orpo completion bash)`."""
    from typer.completion import shell_complete

    raise typer.Exit(
        shell_complete(typer.main.get_command(app), {}, "orpo", "_ORPO_COMPLETE", f"source_{shell.value}")
    )


@app.command()
def promote(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="CONFIG|RUN_DIR|MODEL.gguf|rollback|status")],
    registry: options.Registry = "registry",
    force: Annotated[
        bool, typer.Option("--force", help="Promote whatever the run's report decided.")
    ] = False,
    changes: options.Changes = None,
    as_json: options.AsJson = False,
) -> None:
    """Make the winner of a run, or a model, the champion; go back to the one before; tell who it is."""
    if target.endswith((".yaml", ".yml")):
        from ray_jobs.config import load_config
        from serving.storage.remote import absolute

        source = context.get_parameter_source("registry")
        given = source is not None and source.name == "COMMANDLINE"
        theirs = load_config(Path(target), changes or []).registry
        elsewhere = given and absolute(registry) != absolute(theirs)
        if elsewhere:
            changes = [*(changes or []), f"registry={json.dumps(registry)}"]
        if not force:  # another registry than before takes the stage anew
            forced = ["promote"] if elsewhere else None
            run_stages("promote", Path(target), False, changes, forced, False, as_json)
        config = load_config(Path(target), changes or [])
        target, registry = str(results.run_root(config, with_models=True)), config.registry
    argv = [target, "--registry", registry, *(["--force"] if force else [])]
    if as_json:
        raise typer.Exit(results.tell(lambda: promoted(argv, registry), as_json=True))
    raise typer.Exit(hand_over("serving.promote", argv))


def promoted(argv: list[str], registry: str) -> results.Answer:
    """What `python -m serving.promote` does, and who the champion is then."""
    from serving.promote import main as promote_by_hand

    code = promote_by_hand(argv)
    return results.Answer(code, data={} if code == 2 else champions(registry))


def champions(registry: str) -> dict[str, object]:
    """The champion and those before it; nothing of a registry that cannot be read."""
    from serving.registry import Registry, RegistryError
    from serving.storage.mirror import shared

    try:
        history = Registry.at(registry).history()
    except RegistryError:
        return {}
    rows = [
        {
            "sha256": one.sha256,
            "run": one.run,
            "decided_at": one.decided_at,
            "model": shared(one.model),
            "report": str(one.report),
        }
        for one in history
    ]
    return {"champion": rows[0] if rows else None, "previous": rows[1:]}


@app.command()
def report(
    target: Annotated[Path, typer.Argument(metavar="CONFIG|RUN_DIR")],
    changes: options.Changes = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole report as Markdown.")] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """What a run found."""
    folder = results.find_run(target, changes or [])
    if as_json:
        sys.stdout.write(results.dump(results.report_of(folder)))
    elif markdown:
        results.report_of(folder)
        sys.stdout.write(folder.path("report/report.md").read_text(encoding="utf-8"))
    else:
        sys.stdout.write("\n".join(results.report_lines(folder)) + "\n")
    if browser:
        import webbrowser

        webbrowser.open(folder.path("report/report.html").resolve().as_uri())


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def compare(
    context: typer.Context,
    targets: Annotated[list[str], typer.Argument(metavar="COMPARISON.yaml|A.gguf B.gguf")],
) -> None:
    """Rank several bases by one file (configs/seed-comparison.yaml), or two models on prompts of your own.

    Both: --check, --json, --set FIELD=VALUE, --verbose.

    With two models: --prompts FILE, --pairs FILE, --judge MODEL; all: `python -m ray_jobs.compare -h`.
    """
    first = targets[0]
    module = "ray_jobs.compare_bases" if first.endswith((".yaml", ".yml")) else "ray_jobs.compare"
    raise typer.Exit(hand_over(module, [*targets, *context.args]))


@app.command()
def push(
    target: Annotated[Path, typer.Argument(metavar="CONFIG|RUN_DIR")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository of the model hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    changes: options.Changes = None,
) -> None:
    """Upload a run's tuned model with its card to a model hub; nothing else here uploads anything."""
    from ray_jobs.export.push import push as upload

    folder = results.find_run(target, changes or [], with_models=True)
    model = results.report_of(folder).get("candidate", "candidate")
    sys.stdout.write(f"{upload(folder.path('models', model), repo, private=private)}\n")


@app.command()
def serve(
    registry: options.Registry = "registry",
    host: Annotated[
        str, typer.Option(help="Address; any but this machine's own needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A setting of the endpoint: --set replicas=2."),
    ] = None,
) -> None:
    """Serve the champion behind OpenAI's API until stopped; see docs/serving.md."""
    from serving.cluster_env import CLUSTER_ENV
    from serving.registry import Registry, RegistryError
    from serving.storage.remote import absolute

    address = absolute(registry)
    try:
        champion = Registry.at(address).champion()
    except RegistryError as error:
        raise typer.Exit(end(str(error), 1)) from error
    if champion is None:
        raise typer.Exit(
            end(f"{address}: there is no champion yet; get one with `orpo run CONFIG` or `orpo promote`", 2)
        )
    variables = {"SERVING_REGISTRY": address, **CLUSTER_ENV}
    if (host, port) == ("127.0.0.1", 8000):
        target = ["serving.app:build", *(settings or [])]
    else:
        target = [str(serve_config(host, port, settings or []))]
    raise typer.Exit(hand_over("ray.serve.scripts", ["run", *target], variables))


def serve_config(host: str, port: int, settings: list[str]) -> Path:
    """A config of Serve for another address than its default, which only a config can state."""
    import yaml

    from ray_jobs.config import put_change

    arguments: dict[str, object] = {}
    for change in settings:
        put_change(arguments, change)
    endpoint = {
        "name": "endpoint",
        "route_prefix": "/",
        "import_path": "serving.app:build",
        "args": arguments,
    }
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "applications": [endpoint],
    }
    with tempfile.NamedTemporaryFile(
        "w", suffix=".yaml", prefix="orpo-serve-", delete=False, encoding="utf-8"
    ) as file:
        yaml.safe_dump(content, file)
    return Path(file.name)


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Look, but measure nothing.")] = False,
    storage: Annotated[Path, typer.Option(help="Folder whose disk is looked at.")] = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """Check this machine, and say what each model size will do here (takes some 20 s)."""
    from ray_jobs.cli import doctor as checks

    found = checks.examine(storage, measured=not quick)
    sys.stdout.write(results.dump(found.as_json()) if as_json else "\n".join(found.lines()) + "\n")
    raise typer.Exit(0 if found.usable else 1)
