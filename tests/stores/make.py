#!/usr/bin/python3
"""Makes the stores of a release for tests/stores.rs: make.py BINARY NAME, for example make.py target/release/volfork 0.1.

Writes NAME-killed.store and NAME-closed.store beside this script: files of a store, and what its volumes have. Needs nbdkit and
python3-libnbd.
"""
import base64, hashlib, os, shutil, signal, subprocess, sys, tempfile, time

import nbd

BLOCK = 4096
PORT = 10899


def block(name, number, size=BLOCK):
    """A block that is mostly zeros, so that the stores stay small."""
    return f"{name} block {number}".encode().ljust(32, b".").ljust(size, b"\0")[:size]


def source_bytes():
    return b"".join(block("source", number) for number in range(300)) + b"the odd end".ljust(1000, b"!")


class Model(dict):
    """What each volume has."""

    def write(self, handle, name, offset, data):
        handle.pwrite(data, offset)
        self[name][offset : offset + len(data)] = data

    def zero(self, handle, name, offset, size):
        handle.zero(size, offset)
        self[name][offset : offset + size] = bytes(size)


def lines(root):
    """Runs of bytes of each file that are not zero."""
    for directory, _, names in sorted(os.walk(root)):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if name == "lock" or name.endswith(".sock"):
                continue
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                yield f"file {os.path.relpath(path, root)} {size}"
                at = 0
                while at < size:
                    piece = os.pread(file.fileno(), 512, at)
                    if piece.strip(b"\0"):
                        yield f"at {at} {base64.b64encode(piece.rstrip(bytes(1))).decode()}"
                    at += len(piece)


def save(root, model, name):
    text = [f"volume {volume} {len(data)} {hashlib.sha256(data).hexdigest()}" for volume, data in sorted(model.items())]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".store")
    with open(path, "w") as out:
        out.write("\n".join([*text, *lines(root)]) + "\n")


def fill(binary, store, directory, model):
    def run(*arguments):
        subprocess.check_call([binary, "--store", store, "-q", *arguments], stdout=subprocess.DEVNULL)

    with open(f"{directory}/source", "wb") as file:
        file.write(source_bytes())
    run("init")
    run("create", "base", "--size", str((5 << 20) + 512))
    model["base"] = bytearray((5 << 20) + 512)
    socket = f"{directory}/s"
    server = subprocess.Popen([binary, "--store", store, "serve", "--listen", f"unix:{socket}"], stdout=subprocess.DEVNULL)
    source = subprocess.Popen(["nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", str(PORT), "file", f"{directory}/source"])
    while not os.path.exists(socket):
        time.sleep(0.01)
    time.sleep(0.5)

    def connect(name):
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///{name}?socket={socket}")
        return handle

    base = connect("base")
    for number in [0, 1, 2, 7, 1023, 1024, 1030]:
        model.write(base, "base", number * BLOCK, block("base", number))
    model.write(base, "base", 5 << 20, block("end", 0, 512))
    base.flush()
    run("snapshot", "base", "s")
    model["base@s"] = bytearray(model["base"])
    run("fork", "base@s", "kid")
    model["kid"] = bytearray(model["base"])
    kid = connect("kid")
    model.write(kid, "kid", 2 * BLOCK + 100, b"a part of a block")
    model.zero(kid, "kid", 1023 * BLOCK, 2 * BLOCK)
    model.zero(base, "base", 7 * BLOCK, BLOCK)
    model.write(base, "base", BLOCK, block("again", 1))
    run("fork", f"nbd://127.0.0.1:{PORT}", "half")
    run("hydrate", "half", "--pause")
    model["half"] = bytearray(source_bytes())
    half = connect("half")
    half.pread(16 * BLOCK, 0)
    source.send_signal(signal.SIGKILL)
    source.wait()
    model.write(half, "half", 250 * BLOCK, block("half", 250))
    # Of these blocks the rest is at the source.
    model.write(half, "half", 260 * BLOCK + 9, b"a patch")
    model.write(half, "half", 300 * BLOCK + 500, b"a patch of the odd end")
    model.zero(half, "half", 270 * BLOCK, 2 * BLOCK)
    run("create", "large", "--size", "16T")
    run("destroy", "large")
    run("rename", "kid", "child")
    model["child"] = model.pop("kid")
    for handle in [base, kid, half]:
        handle.flush()
    # In place, over blocks that are durable: their extents are marked.
    model.write(base, "base", 0, block("in place", 0))
    base.flush()
    server.send_signal(signal.SIGKILL)
    server.wait()


def main():
    binary, name = os.path.abspath(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as directory:
        store, model = f"{directory}/store", Model()
        fill(binary, store, directory, model)
        save(store, model, f"{name}-killed")
        subprocess.check_call([binary, "--store", store, "list"], stdout=subprocess.DEVNULL)
        save(store, model, f"{name}-closed")


main()
