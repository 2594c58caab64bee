"""`fastrm-monitor`: each command is a few lines around the library; a mistake is one sentence and exit code 2."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastrm_monitor.config import DEFAULT_STORE, load_settings
from fastrm_monitor.errors import DataError, FastRMError, MissingExtraError

if TYPE_CHECKING:
    from fastrm_monitor.lab.datasets.base import Dataset

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reliability monitoring for vision-language models: a relevance heatmap and a confidence with every answer.",
)
db = typer.Typer(no_args_is_help=True, help="Look after the store.")
app.add_typer(db, name="db")
console = Console()

StoreOption = Annotated[
    str | None, typer.Option(help=f"SQLAlchemy URL of the store; default FASTRM_STORE, else {DEFAULT_STORE}.")
]
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
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
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
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many questions.")] = None,
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
    epochs: Annotated[int, typer.Option(min=1)] = 16,
    batch: Annotated[int, typer.Option(min=1, help="Questions the teacher explains at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    instruction: Annotated[str, typer.Option(help="Put behind every question.")] = "",
    cache: Annotated[Path | None, typer.Option(help="Where labels are kept, so that a broken run goes on.")] = None,
) -> None:
    """Distil a proxy for a model: label questions with the teacher, train, calibrate the confidence.

    Example: fastrm-monitor distill --model llava-hf/llava-1.5-7b-hf --dataset vqav2 --questions Q.json
    --annotations A.json --images val2014 --output proxy
    """
    _one_of("form", form, ("query-row", "self-attention"))
    _one_of("targets", targets, ("centred", "soft", "hard"))
    _need_lab("Distilling")
    _make_folder(output)
    from fastrm_monitor.lab.datasets.options import choose
    from fastrm_monitor.lab.datasets.scene_set import TRAIN_SEED, VALIDATION_SEED, SceneSet

    files = _files(questions=questions, annotations=annotations, images=images, scene_graphs=scene_graphs)
    (source,) = choose([dataset], files)
    data = SceneSet(_listed(kinds), pictures, TRAIN_SEED) if dataset == "scenes" else source.open(limit)
    from fastrm_monitor.lab import ask, labels, sharing
    from fastrm_monitor.lab.distill import Recipe
    from fastrm_monitor.lab.proxies import make_proxy
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
    with _progress() as bar:
        made = labels.make_labels(asker, data, where, batch=batch, progress=bar)
        calibration = []
        if dataset == "scenes" and calibrate_pictures:
            held = [SceneSet([kind], calibrate_pictures, VALIDATION_SEED) for kind in _listed(calibrate_kinds)]
            calibration = [labels.make_labels(asker, one, where, batch=batch, progress=bar) for one in held]
        config = make_proxy(asker, made, calibration, recipe, output, data.name, model, bar)
    if sharing.is_main():
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
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first so many questions of each file.")] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of scenes, the first in distribution; or 'all'.")] = "all",
    pictures: Annotated[int, typer.Option(min=1, help="Scenes of each kind.")] = 300,
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
    _make_folder(output)
    from fastrm_monitor.lab.datasets.options import choose
    from fastrm_monitor.lab.datasets.scene_set import SceneSet
    from fastrm_monitor.lab.datasets.scenes import SHIFTED_KINDS

    files = _files(questions=questions, annotations=annotations, images=images, scene_graphs=scene_graphs)
    parts: list[tuple[str, Dataset]] = []
    for source in choose(dataset or ["scenes"], files):
        if source.form == "scenes":
            wished = ["natural", *SHIFTED_KINDS] if kinds == "all" else _listed(kinds)
            parts += [(kind, SceneSet([kind], pictures)) for kind in wished]
        else:
            parts.append((source.title, source.open(limit)))
    from fastrm_monitor.lab import ask, labels
    from fastrm_monitor.lab import evaluate as lab
    from fastrm_monitor.lab.printing import print_report
    from fastrm_monitor.lab.report.page import page
    from fastrm_monitor.scoring.anatomy import anatomy_of
    from fastrm_monitor.scoring.checkpoint import load_proxy
    from fastrm_monitor.scoring.patches import layout_for

    several = {"all": lab.SECTIONS, "none": ()}
    wanted = several[sections] if sections in several else tuple(_listed(sections))
    for one in wanted:
        _one_of("sections", one, (*lab.SECTIONS, *several))
    given = proxy or [_proxy_folder(None, model)]
    short = len({path.resolve().name for path in given}) == len(given)
    folders = {path.resolve().name if short else str(path): load_proxy(path) for path in given}
    lvlm, processor = ask.load_lvlm(model)
    layout = layout_for(lvlm.config, processor)
    for folder in folders.values():
        anatomy_of(lvlm).check(folder)
    with _progress() as bar:
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
    _write(output / "report.json", json.dumps(result, indent=1))
    _write(output / "report.html", html)
    print_report(result, console)
    console.print(f"written: {output / 'report.json'} and {output / 'report.html'}")


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

    url = _store_url(store)
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


@app.command()
def calibrate(
    store: StoreOption = None,
    proxy: Annotated[
        Path | None, typer.Option(help="Calibrate for this proxy; default: that of the newest case.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="What `export --all` wrote, instead of a store.")] = None,
    flag_rate: Annotated[float | None, typer.Option(help="Flag that share of the traffic.")] = None,
    precision: Annotated[float | None, typer.Option(help="At least that share of the flagged is wrong.")] = None,
    risk: Annotated[float | None, typer.Option(help="At most that share of what is not flagged is wrong.")] = None,
    confidence: Annotated[float, typer.Option(help="Of --precision and --risk.")] = 0.95,
    publish: Annotated[bool, typer.Option("--publish", help="Running servers take it over.")] = False,
    note: Annotated[str, typer.Option(help="Stored with what is published.")] = "",
    output: Annotated[Path | None, typer.Option(help="Folder for calibration.json.")] = None,
) -> None:
    """Recalibrate the confidence on reviewers' verdicts and choose a threshold that can be defended.

    Example: fastrm-monitor calibrate --store sqlite:///fastrm.db --risk 0.05 --publish
    """
    if any(importlib.util.find_spec(name) is None for name in ("scipy", "sklearn")):
        raise MissingExtraError("Calibrating", "calibration")
    from fastrm_monitor.calibration import answers as labelled
    from fastrm_monitor.calibration.choice import calibrate as choose
    from fastrm_monitor.calibration.printing import print_outcome
    from fastrm_monitor.records.engine import check_exists
    from fastrm_monitor.records.store import Store

    ways = {"flag-rate": flag_rate, "precision": precision, "risk": risk}
    given = [(name, value) for name, value in ways.items() if value]
    if len(given) != 1:
        raise FastRMError("Choose the threshold in one way: --flag-rate, --precision or --risk, above 0.")
    version = None
    if proxy is not None:
        from fastrm_monitor.scoring.checkpoint import load_proxy

        version = load_proxy(proxy).version
    if answers is None or publish:
        url = _store_url(store)
        check_exists(url)
    if answers is None:
        with Store(url) as opened:
            found = labelled.from_store(opened, proxy_version=version)
    else:
        from fastrm_monitor.lab.datasets.exported import read_rows

        found = labelled.from_rows((row for _, row in read_rows(answers)), str(answers))
        if version not in (None, found.proxy_version):
            raise DataError(f"{answers} has answers of proxy {found.proxy_version}, and {proxy} is {version}.")
    outcome = choose(found, *given[0], confidence)
    print_outcome(found, outcome, console)
    if answers is not None and found.labelled.all():
        console.print("Warning: every answer is labelled; was this exported with --all? Else the weights are wrong.")
    if output is not None:
        _make_folder(output)
        _write(output / "calibration.json", json.dumps(outcome.as_json(), indent=1))
    if publish:
        with Store(url) as opened:
            number = outcome.publish(opened, getpass.getuser(), note)
        console.print(f"published as policy {number}; running servers of {outcome.model} take it over", markup=False)


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="Folder to write; new, or empty.")],
    store: StoreOption = None,
    form: Annotated[str, typer.Option("--format", help="'jsonl', 'parquet' or 'datasets' (Hugging Face).")] = "jsonl",
    labelled: Annotated[
        bool, typer.Option("--labelled/--all", help="Cases with a verdict only, or all of them.")
    ] = True,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"], help="Answered then or later, UTC."),
    ] = None,
) -> None:
    """Write cases with their verdicts, maps and pictures, for `distill`, `evaluate`, `calibrate` and other tools.

    Example: fastrm-monitor export --store sqlite:///fastrm-demo/fastrm.db --all --output cases
    """
    from fastrm_monitor.records import export as records
    from fastrm_monitor.records.engine import check_exists
    from fastrm_monitor.records.store import Store

    _one_of("format", form, records.FORMATS)
    url = _store_url(store)
    check_exists(url)
    after = None if since is None else since.replace(tzinfo=UTC)
    with Store(url) as opened, _progress() as bar:
        task = bar.add_task("exporting", total=records.count(opened, labelled=labelled, since=after))
        written = records.write(opened, output, form, labelled=labelled, since=after, wrote=lambda: bar.advance(task))
    console.print(f"{written} cases written: {output / records.FILES[form]}", soft_wrap=True)


@db.command("upgrade")
def db_upgrade(store: StoreOption = None) -> None:
    """Bring the store's schema to this version; makes it when the database is empty.

    Example: fastrm-monitor db upgrade --store sqlite:///fastrm.db
    """
    from fastrm_monitor.records import schema

    url = _store_url(store)
    schema.upgrade(url)
    console.print(f"The store's schema is at version {schema.current(url)}.")


@db.command("check")
def db_check(store: StoreOption = None) -> None:
    """Say whether the store is whole, what it holds, and what waits beside it; exit code 1 when something is wrong.

    Example: fastrm-monitor db check --store sqlite:///fastrm-demo/fastrm.db
    """
    from fastrm_monitor.records.check import check

    right = True
    for finding in check(_store_url(store), load_settings()):
        style = None if finding.right else "red"
        console.print(finding.text, style=style, markup=False, highlight=False, soft_wrap=True)
        right = right and finding.right
    console.print("OK" if right else "Not OK: see the red lines.", highlight=False)
    raise typer.Exit(0 if right else 1)


@db.command("purge")
def db_purge(
    store: StoreOption = None,
    older_than: Annotated[
        str | None, typer.Option(help="Delete what is older: 30d, 12h, 2w; traffic and drift too.")
    ] = None,
    case: Annotated[str | None, typer.Option(help="Delete this case.")] = None,
    user_key: Annotated[str | None, typer.Option(help="Delete this user's cases, as the store has the key.")] = None,
    keep_labelled: Annotated[
        bool, typer.Option("--keep-labelled", help="With --older-than: keep cases that have a verdict.")
    ] = False,
    vacuum: Annotated[
        bool, typer.Option("--vacuum", help="Give the space back, too; rewrites an SQLite file and holds up writers.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete cases with their pictures and reviews: by age, one case, or those of one user.

    Example: fastrm-monitor db purge --older-than 30d --keep-labelled --yes
    """
    from fastrm_monitor.records import purge
    from fastrm_monitor.records.check import spooled
    from fastrm_monitor.records.engine import check_exists
    from fastrm_monitor.records.store import Store

    if sum(one is not None for one in (older_than, case, user_key)) != 1:
        raise FastRMError("Say what to delete: one of --older-than AGE, --case ID and --user-key KEY.")
    if keep_labelled and older_than is None:
        raise FastRMError("--keep-labelled goes with --older-than: a case or a user is deleted as a whole.")
    before = None if older_than is None else datetime.now(UTC) - purge.read_age(older_than)
    selection = purge.Selection(before, case, user_key, keep_labelled)
    url = _store_url(store)
    check_exists(url)
    with Store(url) as opened:
        found = purge.count(opened, selection)
        console.print(f"In {opened.safe_url}: {found}.", markup=False, highlight=False, soft_wrap=True)
        if not yes:
            typer.confirm("Delete this?", abort=True)
        with _progress() as bar:
            task = bar.add_task("deleting", total=found.cases)
            done = purge.Counts()
            for step in purge.purge(opened, selection):
                done += step
                bar.advance(task, step.cases)
        purge.forget(opened, vacuum=vacuum)
        waiting = spooled(opened, load_settings())
        console.print(f"Deleted: {done}.", highlight=False, soft_wrap=True)
        if opened.path is not None and done.cases and not vacuum:
            console.print("The file keeps its size and reuses the space; --vacuum gives it back.", soft_wrap=True)
        if waiting is not None and waiting.cases:
            kept = "are left out when they are written" if before is None else "are written first; purge again then"
            what = f"{waiting.cases} cases wait in {waiting.folder}: those to be deleted {kept}."
            console.print(what, markup=False, highlight=False, soft_wrap=True)


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

    given = store or _given_store()
    if given is not None:
        check_exists(given)
    healthy = examine(console, given, _proxy_folder(proxy, "embedded"), vllm=vllm)
    raise typer.Exit(0 if healthy else 2)


# --- shared --------------------------------------------------------------------------------------------------------


def _given_store() -> str | None:
    given = load_settings().store
    return given.get_secret_value() if given is not None else None


def _store_url(store: str | None) -> str:
    return store or _given_store() or DEFAULT_STORE


def _need_lab(what: str, *more: str) -> None:
    """Say at once, not after hours of labelling, that the libraries are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "scipy", "sklearn", *more)):
        raise MissingExtraError(what, "lab")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise FastRMError(f"--output {path} cannot be written: {error.strerror}.") from None


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


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise FastRMError(f"--{option} '{value}' is not known: choose {' or '.join(known)}.")


def _progress() -> Progress:
    from fastrm_monitor.lab import sharing

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sharing.is_main())


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise FastRMError(f"{path} cannot be written: {error.strerror}.") from None


def _print_proxy(output: Path, config: Any) -> None:
    table = Table(title=f"proxy {output}", show_header=False)
    for name, value in config.metrics.items():
        if isinstance(value, float | int):
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)


def _fail(error: FastRMError) -> NoReturn:
    # Without markup: a message may hold brackets, such as those of an extra's name.
    Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False, style="red")
    sys.exit(2)


def _at_home(word: str) -> str:
    """`~/...` behind an option; the shell leaves it alone in `--option=~/...`."""
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + sign + (str(Path(value).expanduser()) if value.startswith("~/") else value)


def main() -> None:
    """Entry point of the console script."""
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
