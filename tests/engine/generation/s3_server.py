"""An S3-speaking server on loopback, in a process of its own, and what a test needs to reach it."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel("ERROR")
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("PORT", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
SECRET = "a-secret-that-must-not-appear"
BUCKET = "shards"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Start the server with one bucket; yields the environment in which clients find it."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("PORT"))
        endpoint = f"http://127.0.0.1:{line.split()[1]}"
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30):
            pass
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
