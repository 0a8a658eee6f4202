"""A network that can fail: this machine and a namespace, with a cable between them. Needs root and iproute2."""

from __future__ import annotations

import subprocess


class Link:
    """A cable between this machine and a namespace."""

    here, there = "10.213.7.1", "10.213.7.2"

    def __init__(self, name: str) -> None:
        self.name = name
        self.within = ["ip", "netns", "exec", name]
        self._do("netns", "add", name)
        self._do("link", "add", name, "type", "veth", "peer", "name", "up0", "netns", name)
        self._do("addr", "add", f"{self.here}/30", "dev", name)
        self.up()
        for options in (["addr", "add", f"{self.there}/30", "dev", "up0"], ["link", "set", "up0", "up"],
                        ["link", "set", "lo", "up"]):  # fmt: skip
            self._do("-n", name, *options)

    def up(self) -> None:
        self._do("link", "set", self.name, "up")

    def down(self) -> None:
        self._do("link", "set", self.name, "down")

    def remove(self) -> None:
        self._do("netns", "del", self.name)

    def _do(self, *options: str) -> None:
        subprocess.run(["ip", *options], check=True)
