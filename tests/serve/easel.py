"""A whole server whose worker is `painter.py`: `python easel.py FOLDER PORT SECONDS [token]`; it prints its address."""

import sys
from pathlib import Path

from limner.serve import hand
from limner.serve.config import Config
from limner.serve.run import address, run

PAINTER = Path(__file__).parent / "painter.py"


def command(config: Config, name: str) -> list[str]:
    told = {"--database": config.url, "--folder": str(config.pictures), "--seconds": sys.argv[3]}
    return [sys.executable, str(PAINTER), *(part for pair in told.items() for part in pair)]


if __name__ == "__main__":
    hand.command = command
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    run(
        Config(folder=folder, port=port, token_required="token" in sys.argv[4:]),
        lambda config, _: print(address(config), flush=True),
    )
