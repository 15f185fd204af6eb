"""A headless Chromium, spoken to through two pipes (DevTools protocol): no driver and no port."""

import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


def chromium():
    """Where one is: ``CARKINETICS_CHROMIUM``, or on the path; None if there is none."""
    return os.environ.get("CARKINETICS_CHROMIUM") or next((p for p in map(shutil.which, NAMES) if p), None)


class Page:
    """One page; every error of its console, and every request that leaves the file, is kept."""

    def __init__(self, executable, folder):
        to_it, self._out = os.pipe()
        self._in, from_it = os.pipe()
        # The browser reads commands from descriptor 3 and writes answers to 4.
        line = "import os, sys; a, b, *c = sys.argv[1:]; a, b = (os.dup(int(x)) for x in (a, b)); "
        line += "os.dup2(os.dup2(a, 20), 3); os.dup2(os.dup2(b, 21), 4); os.execv(c[0], c)"
        flags = ("--headless", "--no-sandbox", "--no-zygote", "--single-process", "--disable-gpu")
        flags += ("--remote-debugging-pipe", f"--user-data-dir={folder}")
        command = [sys.executable, "-c", line, str(to_it), str(from_it), executable, *flags, "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=(to_it, from_it), stdout=quiet, stderr=quiet)
        os.close(to_it)
        os.close(from_it)
        self._left, self._number, self._session, self.errors = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def open(self, path):
        """Load a file and wait until its scripts have run."""
        self.call("Page.navigate", url=path.as_uri())
        for _ in range(100):
            if self.evaluate("document.readyState") == "complete":
                return
            time.sleep(0.1)
        raise AssertionError("the page was not loaded in ten seconds")

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self):
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _next(self):
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], 60)
            assert ready, "the browser does not answer"
            self._left += os.read(self._in, 1 << 20)
        first, self._left = self._left.split(b"\0", 1)
        found = json.loads(first)
        self._keep(found.get("method"), found.get("params", {}))
        return found

    def _keep(self, method, said):
        if method == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"]["text"])
        if method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.errors.append(str(said["args"]))
        if method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(said["entry"]["text"])
        if method == "Network.requestWillBeSent" and not said["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.errors.append(said["request"]["url"])
