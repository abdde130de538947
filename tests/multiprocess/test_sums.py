"""Between processes large gradients are summed up rightly, and tokens exchanged, every time."""

import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "sums.py"


def test_each_device_of_two_processes_has_its_part_of_large_sums_and_exchanges():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
  started = [
    subprocess.Popen([sys.executable, str(PROGRAM), str(index), str(port)], stdout=subprocess.PIPE, text=True)
    for index in range(2)
  ]
  told = [process.communicate(timeout=300)[0] for process in started]
  assert [words.splitlines()[-1] for words in told] == ["0 sums and 0 exchanges wrong"] * 2
