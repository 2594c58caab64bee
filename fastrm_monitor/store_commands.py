"""The commands that work on a store: calibrate, export, and `db` with its own; `cli` has them beside the others."""

from __future__ import annotations

import getpass
import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fastrm_monitor.config import load_settings
from fastrm_monitor.errors import DataError, FastRMError, MissingExtraError
from fastrm_monitor.terminal import StoreOption, console, make_folder, one_of, progress, store_url, write_text

db = typer.Typer(no_args_is_help=True, help="Look after the store.")


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
        url = store_url(store)
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
        make_folder(output)
        write_text(output / "calibration.json", json.dumps(outcome.as_json(), indent=1))
    if publish:
        with Store(url) as opened:
            number = outcome.publish(opened, getpass.getuser(), note)
        console.print(f"published as policy {number}; running servers of {outcome.model} take it over", markup=False)


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

    one_of("format", form, records.FORMATS)
    url = store_url(store)
    check_exists(url)
    after = None if since is None else since.replace(tzinfo=UTC)
    with Store(url) as opened, progress() as bar:
        task = bar.add_task("exporting", total=records.count(opened, labelled=labelled, since=after))
        written = records.write(opened, output, form, labelled=labelled, since=after, wrote=lambda: bar.advance(task))
    console.print(f"{written} cases written: {output / records.FILES[form]}", markup=False, soft_wrap=True)


@db.command("upgrade")
def db_upgrade(store: StoreOption = None) -> None:
    """Bring the store's schema to this version; makes it when the database is empty.

    Example: fastrm-monitor db upgrade --store sqlite:///fastrm.db
    """
    from fastrm_monitor.records import schema

    url = store_url(store)
    schema.upgrade(url)
    console.print(f"The store's schema is at version {schema.current(url)}.")


@db.command("check")
def db_check(store: StoreOption = None) -> None:
    """Say whether the store is whole, what it holds, and what waits beside it; exit code 1 when something is wrong.

    Example: fastrm-monitor db check --store sqlite:///fastrm-demo/fastrm.db
    """
    from fastrm_monitor.records.check import check

    right = True
    for finding in check(store_url(store), load_settings()):
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
    from fastrm_monitor.records.scrub import scrub
    from fastrm_monitor.records.store import Store

    if sum(one is not None for one in (older_than, case, user_key)) != 1:
        raise FastRMError("Say what to delete: one of --older-than AGE, --case ID and --user-key KEY.")
    if keep_labelled and older_than is None:
        raise FastRMError("--keep-labelled goes with --older-than: a case or a user is deleted as a whole.")
    try:
        before = None if older_than is None else datetime.now(UTC) - purge.read_age(older_than)
    except OverflowError:
        raise FastRMError(f"--older-than {older_than} is before the first year: nothing is that old.") from None
    selection = purge.Selection(before, case, user_key, keep_labelled)
    url = store_url(store)
    check_exists(url)
    with Store(url) as opened:
        found = purge.count(opened, selection)
        console.print(f"In {opened.safe_url}: {found}.", markup=False, highlight=False, soft_wrap=True)
        if not yes:
            typer.confirm("Delete this?", abort=True)
        with progress() as bar:
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
        if waiting is not None:
            found_there = scrub(waiting.folder, selection)
            if found_there.removed:
                what = f"Taken out of the spool {waiting.folder}: {found_there.removed} cases."
                console.print(what, markup=False, highlight=False, soft_wrap=True)
            if found_there.left:
                what = (
                    f"{found_there.left} cases to be deleted wait in files of a running server in {waiting.folder}: "
                    "they go when it writes the rest, and are left out."
                )
                console.print(what, markup=False, highlight=False, soft_wrap=True)
