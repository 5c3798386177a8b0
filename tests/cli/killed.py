"""Changes volumes of a server at random, flushes almost never, kills the server in the middle, and saves what each volume has to hold."""
import os, random, signal, subprocess, sys
import nbd

pid, seed, count, directory, fork = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5].split("\n")
random.seed(seed)
volumes = {}
for name, uri in (line.split(" ", 1) for line in sys.argv[6:]):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    with open(f"{directory}/{name}", "rb") as file:
        volumes[name] = (handle, bytearray(file.read()))
for number in range(count):
    name = random.choice(list(volumes))
    handle, model = volumes[name]
    align = random.choice([512, 4096, 4096])
    start = random.randrange(len(model) // align) * align
    length = min(random.randrange(1, 9) * align, len(model) - start)
    change = random.randrange(40)
    if change < 20:
        data = random.randbytes(length)
        handle.pwrite(data, start)
    elif change < 30:
        data = bytes(length)
        handle.zero(length, start, random.choice([0, nbd.CMD_FLAG_NO_HOLE]))
    elif change < 38:
        # Parts of blocks may stay.
        start, length = start & ~4095, 8192
        length = min(length, len(model) - start)
        data = bytes(length)
        handle.trim(length, start)
    elif change == 38:
        handle.flush()
        continue
    else:
        subprocess.run([*fork, name, f"{name}-{seed}-{number}"], check=True, stdout=subprocess.DEVNULL)
        continue
    model[start : start + length] = data
os.kill(pid, signal.SIGKILL)
for name, (_, model) in volumes.items():
    with open(f"{directory}/{name}", "wb") as file:
        file.write(model)
