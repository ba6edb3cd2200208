from tests.device import *
async def test_a(device, tmp_path):
    async with device.opened() as vault:
        await write_file(vault, b"a", b"hello")
        before = await look(vault)
    async with device.opened() as vault:
        assert await look(vault) == before
        await vault.publisher.publish()
    async with device.second(tmp_path/"2").opened() as vault:
        assert await look(vault) == before

async def test_clock(device, clock):
    async with device.opened() as vault:
        await write_file(vault, b"a", b"hello")
        assert not vault.settler.is_settled
        await trio.sleep(3)
        assert vault.settler.is_settled
import trio
