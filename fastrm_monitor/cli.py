"""`fastrm-monitor`: each command is a few lines around the library; a mistake is one sentence and exit code 2."""

from __future__ import annotations

import importlib.util
import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastrm_monitor import store_commands
from fastrm_monitor.config import load_settings
from fastrm_monitor.errors import DataError, FastRMError, MissingExtraError
from fastrm_monitor.terminal import (
    StoreOption,
    console,
    given_store,
    make_folder,
    one_of,
    printable,
    progress,
    store_url,
    write_text,
)

if TYPE_CHECKING:
    from fastrm_monitor.lab.datasets.base import Dataset

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reliability monitoring for vision-language models: a relevance heatmap and a confidence with every answer.",
)
app.add_typer(store_commands.db, name="db")
ModelOption = Annotated[str, typer.Option(help="Model folder, hub id, or 'embedded' for the small one in the package.")]
_TAUGHT = "natural,prior_free,habit_free,varied"
ProxyOption = Annotated[Path | None, typer.Option(help="Proxy folder; default FASTRM_PROXY, else the embedded one.")]
DatasetOption = Annotated[str, typer.Option(help="'scenes', 'vqav2', 'gqa', 'pope' or 'jsonl'.")]
AnnotationsOption = Annotated[Path | None, typer.Option(help="VQAv2's annotations file.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of the pictures.")]
SceneGraphsOption = Annotated[Path | None, typer.Option(help="GQA's scene graphs: where the objects asked about lie.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the store and the overlays.")] = Path("fastrm-demo"),
    count: Annotated[int, typer.Option(min=1, help="Requests to serve.")] = 200,
    open_dashboard: Annotated[bool, typer.Option("--open/--no-open", help="Open the dashboard afterwards.")] = False,
) -> None:
    """Serve real requests through the embedded model, watch them, and show what was found.

    Example: fastrm-monitor demo --output fastrm-demo
    """
    from fastrm_monitor.demo.run import run_demo

    store = run_demo(output, count, console)
    if open_dashboard:
        from fastrm_monitor.dashboard.serve import serve

        raise typer.Exit(serve(store, open_browser=True, model="embedded"))


@app.command()
def score(
    image: Annotated[list[Path], typer.Option(help="A picture; may be given several times.")],
    question: Annotated[str, typer.Option(help="The question about it.")],
    model: ModelOption = "embedded",
    proxy: ProxyOption = None,
    overlay: Annotated[Path | None, typer.Option(help="Write the first picture with its heatmap to this file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask one question about one picture and print the answer with its confidence.

    Example: fastrm-monitor score --image scene.png --question "what color is the square?" --overlay heat.png
    """
    from fastrm_monitor.records.images import load_picture

    if not question.strip():
        raise DataError("The question is empty: pass --question 'what ...?'.")
    pictures = [load_picture(path) for path in image]
    from fastrm_monitor.integrations.hf import instrument
    from fastrm_monitor.lab.ask import Asker, load_lvlm

    folder = _proxy_folder(proxy, model)
    lvlm, processor = load_lvlm(model)
    with instrument(lvlm, processor, proxy=folder) as handle:
        answer = Asker(lvlm, processor, max_new_tokens=max_new_tokens).ask(pictures, question)
        (assessment,) = handle.pop()
    if overlay is not None and assessment.maps:
        from fastrm_monitor.overlay import overlay as draw

        try:
            draw(pictures[0], assessment.maps[0].values, assessment.maps[0].region).save(overlay)
        except (OSError, ValueError) as error:
            raise DataError(f"The overlay cannot be written to {overlay}: {error}.") from None
    facts = {
        "answer": answer,
        "confidence": assessment.confidence,
        "calibrated": assessment.calibrated,
        "flagged": assessment.flagged,
        "reason": assessment.reason,
        "entropy": assessment.entropy,
        "features": dict(assessment.features),
        "proxy_version": assessment.proxy_version,
        "overlay": str(overlay) if overlay is not None and assessment.maps else None,
    }
    if as_json:
        print(json.dumps(facts, indent=1))  # noqa: T201 - the result
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if name != "features" and value is not None:
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else escape(str(value)))
    console.print(table)


@app.command()
def distill(
    output: Annotated[Path, typer.Option(help="Proxy folder to write.")],
    model: ModelOption = "embedded",
    dataset: DatasetOption = "scenes",
    questions: Annotated[Path | None, typer.Option(help="Questions file, or GQA's folder of shards.")] = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    scene_graphs: SceneGraphsOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many questions of the file; scenes have --pictures.")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of scenes, comma-separated.")] = _TAUGHT,
    pictures: Annotated[int, typer.Option(min=1, help="Scenes of each kind.")] = 6000,
    calibrate_kinds: Annotated[
        str, typer.Option(help="Kinds to fit the confidence on, the traffic's first.")
    ] = "natural,habit_free",
    calibrate_pictures: Annotated[int, typer.Option(min=0, help="Scenes of each of these kinds.")] = 800,
    form: Annotated[str, typer.Option(help="'query-row' or 'self-attention'.")] = "query-row",
    targets: Annotated[str, typer.Option(help="'centred', 'soft', or 'hard' as in the paper.")] = "centred",
    heads: Annotated[bool, typer.Option("--heads/--no-heads", help="Teach grounding and evidence, if known.")] = True,
    label_threshold: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Teacher relevance that counts as relevant.")
    ] = 0.3,
    key_size: Annotated[int, typer.Option(min=1, max=8192, help="Width of keys and queries.")] = 64,
    projection_size: Annotated[
        int, typer.Option(min=0, max=65536, help="Hidden width of projections; 0: one linear map.")
    ] = 256,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Questions the teacher explains at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    instruction: Annotated[str, typer.Option(help="Put behind every question.")] = "",
    cache: Annotated[Path | None, typer.Option(help="Where labels are kept, so that a broken run goes on.")] = None,
) -> None:
    """Distil a proxy for a model: label questions with the teacher, train, calibrate the confidence.

    Example: fastrm-monitor distill --model llava-hf/llava-1.5-7b-hf --dataset vqav2 --questions Q.json
    --annotations A.json --images val2014 --output proxy
    """
    one_of("form", form, ("query-row", "self-attention"))
    one_of("targets", targets, ("centred", "soft", "hard"))
    _need_lab("Distilling")
    make_folder(output)
    from fastrm_monitor.lab.datasets.options import check_limit, choose
    from fastrm_monitor.lab.datasets.scene_set import TRAIN_SEED, VALIDATION_SEED, SceneSet

    files = _files(questions=questions, annotations=annotations, images=images, scene_graphs=scene_graphs)
    (source,) = choose([dataset], files)
    check_limit([source], limit)
    held: list[Dataset] = []
    if dataset == "scenes" and calibrate_pictures:  # drawn now: an unknown kind is refused before hours of labelling
        held += [SceneSet([kind], calibrate_pictures, VALIDATION_SEED) for kind in _listed(calibrate_kinds)]
    data = SceneSet(_listed(kinds), pictures, TRAIN_SEED) if dataset == "scenes" else source.open(limit)
    from fastrm_monitor.lab import ask, labels, sharing
    from fastrm_monitor.lab.distill import Recipe
    from fastrm_monitor.lab.proxies import make_proxy
    from fastrm_monitor.lab.training_pictures import remember
    from fastrm_monitor.scoring.patches import layout_for

    sharing.join()  # before the model takes a GPU
    lvlm, processor = ask.load_lvlm(model)
    layout_for(lvlm.config, processor)  # a family without one is refused now, not after the labelling
    asker = ask.Asker(lvlm, processor, instruction)
    recipe = Recipe(
        form=form,  # type: ignore[arg-type]
        targets=targets,
        heads=heads,
        label_threshold=label_threshold,
        key_size=key_size,
        projection_size=projection_size if form == "query-row" else 0,
        epochs=epochs,
        seed=seed,
    )
    where = cache or labels.default_cache()
    with progress() as bar:
        made = labels.make_labels(asker, data, where, batch=batch, progress=bar)
        calibration = [labels.make_labels(asker, one, where, batch=batch, progress=bar) for one in held]
        config = make_proxy(asker, made, calibration, recipe, output, data.name, model, bar)
    if sharing.is_main():
        remember(output, data)
        _print_proxy(output, config)


@app.command()
def evaluate(
    output: Annotated[Path, typer.Option(help="Folder for report.json and report.html; a broken run goes on there.")],
    model: ModelOption = "embedded",
    proxy: Annotated[
        list[Path] | None,
        typer.Option(help="Proxy folder; default FASTRM_PROXY, else the embedded one. Further ones stand beside it."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="'scenes' (default), 'vqav2', 'gqa', 'pope' or 'jsonl'. Of several each takes the next file of each "
            "option, and the others are held against the first."
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None, typer.Option(help="Questions file, or GQA's folder of shards; several give several parts.")
    ] = None,
    annotations: Annotated[list[Path] | None, typer.Option(help="VQAv2's annotations file.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of the pictures; given once it serves all.")] = None,
    scene_graphs: Annotated[
        list[Path] | None, typer.Option(help="GQA's scene graphs: where the objects asked about lie.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many questions of each file; scenes have --pictures.")
    ] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of scenes, the first in distribution; or 'all'.")] = "all",
    pictures: Annotated[int, typer.Option(min=1, help="Scenes of each kind.")] = 300,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31, help="Of the test scenes; default 103.")] = None,
    sections: Annotated[
        str,
        typer.Option(help="Sections that ask the model again: perturbation,sampling,layers,cost, or 'all' or 'none'."),
    ] = "all",
    again: Annotated[
        int, typer.Option(min=1, help="Questions of a data set that perturbation and sampling ask again.")
    ] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Questions the teacher explains at once.")] = 16,
    instruction: Annotated[str, typer.Option(help="Put behind every question.")] = "",
    cache: Annotated[Path | None, typer.Option(help="Where labels are kept, so that a broken run goes on.")] = None,
) -> None:
    """Measure a proxy and its confidence, and give a verdict on each claim of the FastRM paper.

    Example: fastrm-monitor evaluate --dataset scenes --pictures 300 --output report
    """
    _need_lab("Evaluating", "jinja2", "matplotlib")
    make_folder(output)
    from fastrm_monitor.lab.datasets.options import check_limit, choose, seed_of_scenes
    from fastrm_monitor.lab.datasets.scene_set import SceneSet
    from fastrm_monitor.lab.datasets.scenes import SHIFTED_KINDS

    files = _files(questions=questions, annotations=annotations, images=images, scene_graphs=scene_graphs)
    parts: list[tuple[str, Dataset]] = []
    sources = choose(dataset or ["scenes"], files)
    check_limit(sources, limit)
    seed = seed_of_scenes(sources, seed)
    for source in sources:
        if source.form == "scenes":
            wished = ["natural", *SHIFTED_KINDS] if kinds == "all" else _listed(kinds)
            parts += [(kind, SceneSet([kind], pictures, seed)) for kind in wished]
        else:
            parts.append((source.title, source.open(limit)))
    from fastrm_monitor.lab import ask, labels
    from fastrm_monitor.lab import evaluate as lab
    from fastrm_monitor.lab.printing import print_report
    from fastrm_monitor.lab.report.page import page
    from fastrm_monitor.scoring.anatomy import anatomy_of
    from fastrm_monitor.scoring.checkpoint import load_proxy
    from fastrm_monitor.scoring.patches import layout_for

    wanted = _sections(sections, lab.SECTIONS)
    given = proxy or [_proxy_folder(None, model)]
    for place, path in enumerate(given):
        if path.resolve() in [other.resolve() for other in given[:place]]:
            raise FastRMError(f"--proxy {path} names the same folder as another --proxy: give each once.")
    short = len({path.resolve().name for path in given}) == len(given)
    folders = {path.resolve().name if short else str(path): load_proxy(path) for path in given}
    lvlm, processor = ask.load_lvlm(model)
    layout = layout_for(lvlm.config, processor)
    for folder in folders.values():
        anatomy_of(lvlm).check(folder)
    with progress() as bar:
        work = lab.Evaluation(
            asker=ask.Asker(lvlm, processor, instruction),
            model=model,
            folders=folders,
            layout=layout,
            output=output,
            cache=cache or labels.default_cache(),
            progress=bar,
            sections=wanted,
            batch=batch,
            again=again,
        )
        result, examples = work.run(parts)
        task = bar.add_task("drawing", total=1)
        html = page(result, examples)
        bar.update(task, completed=1)
    write_text(output / "report.json", json.dumps(result, indent=1))
    write_text(output / "report.html", html)
    print_report(result, console)
    console.print(f"written: {output / 'report.json'} and {output / 'report.html'}", markup=False)


@app.command()
def dashboard(
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback without sign-in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    auth: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the OpenID Connect provider to sign in with; default FASTRM_AUTH, else none."
        ),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines in although nobody signs in.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="No verdicts, no claims, nothing published.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model folder, hub id or 'embedded' to look closer with; default FASTRM_MODEL.")
    ] = None,
) -> None:
    """Open the dashboard: overview, review queue, cases, health.

    Example: fastrm-monitor dashboard --store sqlite:///fastrm-demo/fastrm.db
    """
    from fastrm_monitor.dashboard.serve import serve
    from fastrm_monitor.records.engine import check_exists
    from fastrm_monitor.records.store import Store

    url = store_url(store)
    check_exists(url)
    Store(url).close()  # what is wrong with it is said here, not on a page
    raise typer.Exit(
        serve(
            url,
            host=host,
            port=port,
            open_browser=open_browser,
            allow_remote=allow_remote,
            auth=auth,
            read_only=read_only,
            model=model,
        )
    )


app.command()(store_commands.calibrate)
app.command()(store_commands.export)


@app.command()
def doctor(
    store: StoreOption = None,
    proxy: ProxyOption = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Look at vLLM and its plug-in too.")] = False,
) -> None:
    """Say what is installed, whether proxy and store can be used, and what was counted.

    Example: fastrm-monitor doctor --store sqlite:///fastrm-demo/fastrm.db
    """
    from fastrm_monitor.doctor import examine
    from fastrm_monitor.records.engine import check_exists

    given = store or given_store()
    if given is not None:
        check_exists(given)
    healthy = examine(console, given, _proxy_folder(proxy, "embedded"), vllm=vllm)
    raise typer.Exit(0 if healthy else 2)


# --- shared --------------------------------------------------------------------------------------------------------


def _need_lab(what: str, *more: str) -> None:
    """Say at once, not after hours of labelling, that the libraries are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "scipy", "sklearn", *more)):
        raise MissingExtraError(what, "lab")


def _proxy_folder(proxy: Path | None, model: str) -> Path:
    """The proxy named, that of the environment, or the embedded one when the model is the embedded one."""
    from fastrm_monitor.demo import PROXY_FOLDER

    given = proxy or load_settings().proxy
    if given is not None:
        return Path(given)
    if model != "embedded":
        raise FastRMError(f"No proxy for '{model}': pass --proxy FOLDER, or make one with `fastrm-monitor distill`.")
    return PROXY_FOLDER


def _files(**given: Path | list[Path] | None) -> dict[str, list[Path]]:
    """The values of each option with files, by its name on the command line."""
    listed = {name: [value] if isinstance(value, Path) else value or [] for name, value in given.items()}
    return {name.replace("_", "-"): values for name, values in listed.items()}


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",")]


def _sections(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The sections named: some of the known ones, 'all' or 'none'."""
    several: dict[str, tuple[str, ...]] = {"all": known, "none": ()}
    named = _listed(text)
    for one in named:
        one_of("sections", one, (*known, *several))
    if len(named) > 1 and several.keys() & set(named):
        raise FastRMError(f"--sections '{text}' contradicts itself: 'none' and 'all' stand alone.")
    return several.get(named[0], tuple(named))


def _print_proxy(output: Path, config: Any) -> None:
    table = Table(title=escape(f"proxy {output}"), show_header=False)
    for name, value in config.metrics.items():
        if isinstance(value, float | int):
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)


def _fail(error: FastRMError) -> NoReturn:
    # Without markup: a message may hold brackets, such as those of an extra's name.
    Console(stderr=True, soft_wrap=True).print(
        f"Error: {printable(str(error))}", markup=False, highlight=False, style="red"
    )
    sys.exit(2)


def _at_home(word: str) -> str:
    """`~/...` behind an option; the shell leaves it alone in `--option=~/...`."""
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + sign + (str(Path(value).expanduser()) if value.startswith("~/") else value)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        app([_at_home(word) for word in sys.argv[1:]])
    except FastRMError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        extra = {"torch": "hf", "transformers": "hf", "safetensors": "hf", "sklearn": "lab", "scipy": "lab"}
        missing = (error.name or "").split(".")[0]
        if missing not in extra:
            raise
        _fail(MissingExtraError("This command", extra[missing]))


if __name__ == "__main__":
    main()
