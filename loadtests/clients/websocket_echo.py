"""The `websockets` client through a gateway: text, binary of every frame size, ping, fragments, close, many at once."""

import argparse
import asyncio
import ssl

import websockets

SIZES = (0, 1, 125, 126, 65535, 65536, 1_000_000)
BOUND = 30


async def check(url, tls):
    host = {"host": "127.0.0.1"} if tls else {}
    async with websockets.connect(url, ssl=tls, max_size=None, compression=None, **host) as socket:
        assert socket.response.headers["x-backend"] == "one", socket.response
        await socket.send("text: \u00e4")
        assert await socket.recv() == "text: \u00e4"
        for size in SIZES:
            await socket.send(bytes(size))
            assert await socket.recv() == bytes(size), size
        await socket.send(["frag", "men", "ted"])
        assert await socket.recv() == "fragmented"
        await (await socket.ping())
        await socket.close(4000, "done")
        assert socket.close_code == 4000, socket.close_code


async def main():
    parser = argparse.ArgumentParser()
    for name in ("plain", "tls", "ca"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    trust = ssl.create_default_context(cafile=arguments.ca)
    for url, tls in ((arguments.plain, None), (arguments.tls, trust)):
        async with asyncio.timeout(BOUND):
            await check(url, tls)
            await asyncio.gather(*(check(url, tls) for _ in range(20)))
        scheme = url.split(":")[0]
        print(f"{scheme}: text, {len(SIZES)} sizes of binary, fragments, ping and close; then 20 sockets at once")


if __name__ == "__main__":
    asyncio.run(main())
