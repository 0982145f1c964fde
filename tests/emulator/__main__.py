"""``python -m emulator``: starts the account and serves it until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .account import Account


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m emulator", description="An AWS account on one machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--log", type=Path, help="the emulator's own log (default: warnings on stderr)")
    parser.add_argument(
        "--function-logs", type=Path, help="directory for what the functions write (default: temporary)"
    )
    parser.add_argument(
        "--schedules",
        choices=("on", "off"),
        default="off",
        help="run schedule expressions on their own clock (default %(default)s; POST /_lab/tick fires them once)",
    )
    parser.add_argument(
        "--second", type=float, default=1.0, help="length of a second of that clock, in seconds (default %(default)s)"
    )
    parser.add_argument(
        "--environments", type=int, default=10, help="environments of one function at once (default %(default)s)"
    )
    return parser.parse_args(argv)


def main() -> int:
    options = arguments()
    logging.basicConfig(
        filename=options.log,
        level=logging.INFO if options.log else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    endpoint = f"http://localhost:{options.port}"
    # For the clients that moto, the SAM translator and the emulator itself make: never a real account.
    os.environ.update(
        AWS_ACCESS_KEY_ID="emulated",
        AWS_SECRET_ACCESS_KEY="emulated",
        AWS_SESSION_TOKEN="emulated",
        AWS_ENDPOINT_URL=endpoint,
        MOTO_PORT=str(options.port),
        MOTO_IAM_LOAD_MANAGED_POLICIES="true",
    )
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    os.environ.pop("AWS_PROFILE", None)

    from .account import Account  # after the environment is set: moto reads it on import

    state = Path(tempfile.mkdtemp(prefix="emulator-"))
    try:
        account = Account(
            endpoint=endpoint,
            state=state,
            function_logs=options.function_logs or state / "logs",
            environments=options.environments,
            second=options.second if options.schedules == "on" else None,
        )
        return _serve(account, options)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _serve(account: Account, options: argparse.Namespace) -> int:
    from .server import listen

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = listen(options.host, options.port, account.application)
    except (OSError, SystemExit) as refused:
        # werkzeug prints its own advice and exits; the port is all that can be wrong.
        print(
            f"emulator: cannot listen on {options.host}:{options.port}: {refused}; choose another --port",
            file=sys.stderr,
        )
        account.close()
        return 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account.start()
    logging.getLogger("emulator").info("ready on %s", account.endpoint)
    stop.wait()
    account.close()
    server.shutdown()
    return 0


if __name__ == "__main__":
    # Request threads may sit in a long poll: they hold nothing that outlives the process.
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
