"""The command line, `espalier`: the list of its commands. Starts without torch."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from app.cli import (
    account,
    admin,
    backup,
    compare,
    compress,
    download,
    gate,
    jobs,
    logs,
    method_package,
    methods,
    probe,
    processes,
    publish,
    report,
    schema,
    serve,
    signing_keys,
    store,
    sweep_table,
    sweeps,
    verify,
    webhooks,
)
from app.cli.exits import MEANINGS
from app.cli.options import Commands, Connection
from workers.engine import DISTRIBUTION

EPILOG = "\n\n".join(["[bold]Exit codes[/]", *(f"{code:>3}  {meaning}" for code, meaning in MEANINGS.items())])

cli = typer.Typer(
    cls=Commands,
    name="espalier",
    help="Compression of language models as a service.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"espalier {version(DISTRIBUTION)}\n")
        raise typer.Exit


@cli.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="ESPALIER_URL", help="The service. Default: the one `serve` starts here.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ESPALIER_API_KEY", help="Better given by the variable: others can see a command line."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = Connection(url, api_key)


RUN, JOBS, OPERATE = "Run", "Jobs", "Operate"

cli.command("serve", rich_help_panel=RUN)(serve.serve)
cli.command("compress", rich_help_panel=RUN)(compress.compress)

catalogue = typer.Typer(
    cls=methods.ShownByDefault, help="The compression methods, or one of them: show (unless said), new."
)
catalogue.command("show")(methods.show)
catalogue.command("new")(method_package.new)
cli.add_typer(catalogue, name="methods", rich_help_panel=RUN)

cli.command("submit", rich_help_panel=JOBS)(jobs.submit)
cli.command("watch", rich_help_panel=JOBS)(jobs.watch)
cli.command("list", rich_help_panel=JOBS)(jobs.list_jobs)
cli.command("status", rich_help_panel=JOBS)(jobs.status)
cli.command("cancel", rich_help_panel=JOBS)(jobs.cancel)
cli.command("pause", rich_help_panel=JOBS)(jobs.pause)
cli.command("resume", rich_help_panel=JOBS)(jobs.resume)
cli.command("retry", rich_help_panel=JOBS)(jobs.retry)
cli.command("pin", rich_help_panel=JOBS)(jobs.pin)
cli.command("unpin", rich_help_panel=JOBS)(jobs.unpin)
cli.command("delete", rich_help_panel=JOBS)(jobs.delete)
cli.command("logs", rich_help_panel=JOBS)(logs.logs)
cli.command("report", rich_help_panel=JOBS)(report.report)
cli.command("compare", rich_help_panel=JOBS)(compare.compare)
cli.command("gate", rich_help_panel=JOBS)(gate.gate)
cli.command("download", rich_help_panel=JOBS)(download.download)
cli.command("publish", rich_help_panel=JOBS)(publish.publish)
cli.command("verify", rich_help_panel=JOBS)(verify.verify)
cli.command("models", rich_help_panel=JOBS)(account.models)
cli.command("workers", rich_help_panel=JOBS)(account.workers)
cli.command("whoami", rich_help_panel=JOBS)(account.whoami)

sweep = typer.Typer(
    no_args_is_help=True, help="Jobs that differ in a few fields: submit, list, show, pareto, table, cancel, delete."
)
sweep.command("submit")(sweeps.submit)
sweep.command("list")(sweeps.list_sweeps)
sweep.command("show")(sweeps.show)
sweep.command("pareto")(sweeps.pareto)
sweep.command("table")(sweep_table.table)
sweep.command("cancel")(sweeps.cancel)
sweep.command("delete")(sweeps.delete)
cli.add_typer(sweep, name="sweep", rich_help_panel=JOBS)

hooks = typer.Typer(
    no_args_is_help=True,
    help="Have others told of jobs: create, list, enable, disable, delete, rotate, test, deliveries, redeliver.",
)
hooks.command("create")(webhooks.create)
hooks.command("list")(webhooks.list_webhooks)
hooks.command("enable")(webhooks.enable)
hooks.command("disable")(webhooks.disable)
hooks.command("delete")(webhooks.delete)
hooks.command("rotate")(webhooks.rotate)
hooks.command("test")(webhooks.send_test)
hooks.command("deliveries")(webhooks.deliveries)
hooks.command("redeliver")(webhooks.redeliver)
cli.add_typer(hooks, name="webhooks", rich_help_panel=JOBS)

cli.command("api", rich_help_panel=OPERATE)(processes.api)
cli.command("worker", rich_help_panel=OPERATE)(processes.worker)
cli.command("reconciler", rich_help_panel=OPERATE)(processes.reconciler)
cli.command("config", rich_help_panel=OPERATE)(admin.config)
cli.command("probe", rich_help_panel=OPERATE)(probe.probe)
cli.command("backup", rich_help_panel=OPERATE)(backup.backup)
cli.command("restore", rich_help_panel=OPERATE)(backup.restore)
cli.command("gc", rich_help_panel=OPERATE)(store.gc)
cli.command("adopt-store", rich_help_panel=OPERATE)(store.adopt_store)

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
keys.command("create")(admin.keys_create)
keys.command("list")(admin.keys_list)
keys.command("revoke")(admin.keys_revoke)
cli.add_typer(keys, name="keys", rich_help_panel=OPERATE)

tenants = typer.Typer(no_args_is_help=True, help="Tenants: list, set shares and quotas.")
tenants.command("list")(admin.tenants_list)
tenants.command("set")(admin.tenants_set)
cli.add_typer(tenants, name="tenants", rich_help_panel=OPERATE)

signing = typer.Typer(no_args_is_help=True, help="Keys that sign manifests: list, rotate, revoke.")
signing.command("list")(signing_keys.list_keys)
signing.command("rotate")(signing_keys.rotate)
signing.command("revoke")(signing_keys.revoke)
cli.add_typer(signing, name="signing-keys", rich_help_panel=OPERATE)

db = typer.Typer(no_args_is_help=True, help="The database's schema: upgrade, downgrade, current.")
db.command("upgrade")(admin.db_upgrade)
db.command("downgrade")(schema.db_downgrade)
db.command("current")(admin.db_current)
cli.add_typer(db, name="db", rich_help_panel=OPERATE)


def main() -> None:
    cli()
