#!/usr/bin/env python3
"""Makes up a chat export in the layout that Telegram Desktop writes (HTML and JSON).

    scripts/sample_export.py FOLDER [--seed N] [--scale X]

At scale 1 it has about 3,700 files and 80 MB. The same seed and scale give the same bytes,
names and times. The photos are real JPEGs (of coloured squares), the rest has the right
beginning and chance for the remainder, which like real media does not compress. As in real
chats some pictures and stickers come twice. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import os
import random
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

EXPORTED: Final = datetime(2024, 6, 30, 20, 15, 0, tzinfo=UTC)
FIRST_MESSAGE: Final = datetime(2022, 1, 3, 7, 30, 0, tzinfo=UTC)
MESSAGES_IN_PAGE: Final = 1000

PEOPLE: Final = {"Anna Lindqvist": "user419204881", "Мирон": "user7120335", "you": "user99120714"}

WORDS: Final = (
    "the a we you I it that this here there today tomorrow never maybe always train ticket "
    "picture dinner coffee call mother doctor key garden meeting weekend rain sun photo cake "
    "late early was is will can do go see send bring find keep forget remember love miss "
    "danke später vielleicht сегодня завтра спасибо привет ужин 明日 写真 ありがとう 👍 😂 ❤️ 🎉"
).split()

# kind: how many at scale 1, smallest and largest size in bytes
MEDIA: Final = {
    "photo": (1250, 8_000, 60_000),
    "voice": (520, 4_000, 40_000),
    "sticker": (260, 6_000, 30_000),
    "video": (36, 150_000, 1_200_000),
    "round": (24, 120_000, 500_000),
    "document": (60, 3_000, 200_000),
}

DOCUMENTS: Final = (
    ("Mietvertrag unterschrieben", "pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
    ("отпуск 2023", "zip", b"PK\x03\x04\x14\x00\x08\x00\x08\x00"),
    ("議事録", "docx", b"PK\x03\x04\x14\x00\x06\x00\x08\x00"),
    ("Boarding pass (2)", "pdf", b"%PDF-1.4\n%\xc7\xec\x8f\xa2\n"),
    ("budget_final_v3", "xlsx", b"PK\x03\x04\x14\x00\x06\x00\x08\x00"),
    ("IMG_2041", "HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
)


class Export:
    """One export under way: the folder, the source of chance and the messages so far."""

    def __init__(self, folder: Path, seed: int, scale: float) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.scale = scale
        self.count: dict[str, int] = {}
        self.photos: list[bytes] = []

    def write(self, name: str, data: bytes) -> int:
        """Store one file; its length comes back, as a message mentions it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        stamp = EXPORTED.timestamp()
        os.utime(path, (stamp, stamp))
        return len(data)

    def filling(self, kind: str) -> bytes:
        _, smallest, largest = MEDIA[kind]
        # Few are large, most are small.
        size = smallest + int((largest - smallest) * self.chance.random() ** 2)
        return self.chance.randbytes(size)

    def number(self, kind: str) -> int:
        self.count[kind] = self.count.get(kind, 0) + 1
        return self.count[kind]

    # One method for each kind of message. Each returns what result.json says of it.

    def photo(self, stamp: str) -> dict[str, Any]:
        name = f"photos/photo_{self.number('photo')}@{stamp}"
        if self.photos and self.chance.random() < 0.06:
            data = self.chance.choice(self.photos)  # forwarded
        else:
            data = jpeg(self.chance, 20, 15, self.filling("photo"))
            self.photos = [*self.photos[-50:], data]
        size = self.write(f"{name}.jpg", data)
        self.write(f"{name}_thumb.jpg", jpeg(self.chance, 20, 15, self.chance.randbytes(1500)))
        return {"photo": f"{name}.jpg", "photo_file_size": size, "width": 160, "height": 120}

    def video(self, stamp: str) -> dict[str, Any]:
        name = f"video_files/video_{self.number('video')}@{stamp}.mp4"
        return self._film(name, self.filling("video"), "video_file")

    def round(self, stamp: str) -> dict[str, Any]:
        name = f"round_video_messages/file_{self.number('round')}@{stamp}.mp4"
        return self._film(name, self.filling("round"), "video_message")

    def _film(self, name: str, filling: bytes, media_type: str) -> dict[str, Any]:
        size = self.write(name, mp4(filling))
        thumb = f"{name}_thumb.jpg"
        self.write(thumb, jpeg(self.chance, 20, 20, self.chance.randbytes(2000)))
        return {
            "file": name,
            "file_name": Path(name).name,
            "file_size": size,
            "thumbnail": thumb,
            "media_type": media_type,
            "mime_type": "video/mp4",
            "duration_seconds": 1 + size // 60_000,
            "width": 640,
            "height": 360 if media_type == "video_file" else 640,
        }

    def voice(self, stamp: str) -> dict[str, Any]:
        name = f"voice_messages/audio_{self.number('voice')}@{stamp}.ogg"
        size = self.write(name, opus(self.filling("voice")))
        return {
            "file": name,
            "file_name": Path(name).name,
            "file_size": size,
            "media_type": "voice_message",
            "mime_type": "audio/ogg",
            "duration_seconds": 1 + size // 2_500,
        }

    def sticker(self, _: str) -> dict[str, Any]:
        number = self.number("sticker")
        again = "" if number == 1 else f" ({number - 1})"
        # A chat uses the same few stickers over and over.
        favourite = random.Random(self.chance.randrange(90))
        animated = favourite.random() < 0.3
        name = f"stickers/{'AnimatedSticker' if animated else 'sticker'}{again}"
        name += ".tgs" if animated else ".webp"
        filling = favourite.randbytes(favourite.randrange(*MEDIA["sticker"][1:]))
        size = self.write(name, tgs(filling) if animated else webp(filling))
        self.write(f"{name}_thumb.jpg", jpeg(favourite, 16, 16, favourite.randbytes(800)))
        return {
            "file": name,
            "file_name": Path(name).name,
            "file_size": size,
            "thumbnail": f"{name}_thumb.jpg",
            "media_type": "sticker",
            "sticker_emoji": "🎉",
            "width": 512,
            "height": 512,
        }

    def document(self, _: str) -> dict[str, Any]:
        title, ending, magic = self.chance.choice(DOCUMENTS)
        number = self.number(title)
        again = "" if number == 1 else f" ({number - 1})"
        name = f"files/{title}{again}.{ending}"
        size = self.write(name, magic + self.filling("document"))
        return {"file": name, "file_name": Path(name).name, "file_size": size}

    def text(self, _: str) -> dict[str, Any]:
        return {}


def messages(export: Export) -> Iterator[dict[str, Any]]:
    """Every message from the first to the last, its media written as it goes by."""
    kinds = [kind for kind, (many, _, _) in MEDIA.items() for _ in range(wanted(many, export))]
    kinds += ["text"] * (2 * len(kinds))
    export.chance.shuffle(kinds)
    step = (EXPORTED - FIRST_MESSAGE) / (len(kinds) + 1)
    for number, kind in enumerate(kinds, start=1):
        date = FIRST_MESSAGE + step * number + timedelta(seconds=export.chance.randrange(600))
        who = export.chance.choice(list(PEOPLE))
        said = kind == "text" or export.chance.random() < 0.1
        text = " ".join(export.chance.choices(WORDS, k=export.chance.randrange(1, 30)))
        yield {
            "id": number,
            "type": "message",
            "date": f"{date:%Y-%m-%dT%H:%M:%S}",
            "date_unixtime": str(int(date.timestamp())),
            "from": who,
            "from_id": PEOPLE[who],
            **getattr(export, kind)(f"{date:%d-%m-%Y_%H-%M-%S}"),
            "text": text if said else "",
            "text_entities": [{"type": "plain", "text": text}] if said else [],
        }


def wanted(many: int, export: Export) -> int:
    return max(1, round(many * export.scale))


# The formats: each a right beginning, then chance.

JPEG_DC: Final = {0: "00", 1: "010", 2: "011", 3: "100", 4: "101", 5: "110", 6: "1110", 7: "11110"}
JPEG_END_OF_BLOCK: Final = "0"


def jpeg(chance: random.Random, across: int, down: int, filling: bytes) -> bytes:
    """A picture of coloured squares, each one block of 8x8 pixels that has no detail.

    The filling stands in application segments, as a camera's own data does.
    """
    return b"".join(
        (
            b"\xff\xd8",
            jpeg_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            *(
                jpeg_segment(0xEF, filling[start : start + 65_000])
                for start in range(0, len(filling), 65_000)
            ),
            jpeg_segment(0xDB, b"\0" + b"\x10" * 64),
            jpeg_segment(
                0xC0,
                struct.pack(">BHHB", 8, down * 8, across * 8, 3) + b"\1\x11\0\2\x11\0\3\x11\0",
            ),
            jpeg_segment(0xC4, b"\0" + bytes([0, 1, 5, 1, 1] + [0] * 11) + bytes(range(8))),
            jpeg_segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            jpeg_segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0"),
            jpeg_blocks(chance, across * down),
            b"\xff\xd9",
        )
    )


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_blocks(chance: random.Random, blocks: int) -> bytes:
    before = [0, 0, 0]
    bits = []
    for _ in range(blocks):
        for component in range(3):
            level = chance.randrange(-40, 41)
            step = level - before[component]
            before[component] = level
            size = abs(step).bit_length()
            # A negative step is written as its distance from the lowest of its length.
            rest = step if step >= 0 else step + (1 << size) - 1
            bits.append(JPEG_DC[size] + (f"{rest:0{size}b}" if size else "") + JPEG_END_OF_BLOCK)
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    packed = int(text, 2).to_bytes(len(text) // 8, "big")
    return packed.replace(b"\xff", b"\xff\0")


def png(side: int, colour: tuple[int, int, int]) -> bytes:
    """A real picture of one colour, as the icons of the export's pages are."""
    rows = (b"\0" + bytes(colour) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pieces = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in pieces
    )


def mp4(filling: bytes) -> bytes:
    kind = b"ftypisom" + struct.pack(">I", 0x200) + b"isomiso2avc1mp41"
    boxes = (kind, b"mdat" + filling)
    return b"".join(struct.pack(">I", len(box) + 4) + box for box in boxes)


def opus(filling: bytes) -> bytes:
    head = b"OpusHead\1\1" + struct.pack("<HIhB", 312, 48_000, 0, 0)
    return b"OggS\0\2" + bytes(8) + b"\1\0\0\0" + bytes(8) + bytes([1, len(head)]) + head + filling


def webp(filling: bytes) -> bytes:
    body = b"WEBPVP8L" + struct.pack("<I", len(filling)) + filling
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tgs(filling: bytes) -> bytes:
    """A Lottie animation without layers, packed."""
    animation = {"tgs": 1, "v": "5.5.2", "fr": 60, "w": 512, "h": 512, "nm": filling.hex()}
    return gzip.compress(json.dumps(animation).encode(), mtime=0)


# The pages and what lies beside them.

PAGE: Final = """<!DOCTYPE html>
<html>
 <head>
  <meta charset="utf-8"/>
  <title>Exported Data</title>
  <link href="css/style.css" rel="stylesheet"/>
  <script src="js/script.js" type="text/javascript"></script>
 </head>
 <body onload="CheckLocation();">
  <div class="page_wrap">
   <div class="page_header"><div class="content"><div class="text bold">{title}</div></div></div>
   <div class="page_body chat_page"><div class="history">
{before}{messages}{after}
   </div></div>
  </div>
 </body>
</html>
"""

MESSAGE: Final = """    <div class="message default clearfix" id="message{id}">
     <div class="body">
      <div class="pull_right date details" title="{date}">{time}</div>
      <div class="from_name">{who}</div>
{media}      <div class="text">{text}</div>
     </div>
    </div>
"""


def html_message(message: dict[str, Any]) -> str:
    media = message.get("photo") or message.get("file")
    link = f'      <a class="media_wrap" href="{html.escape(media)}"></a>\n' if media else ""
    return MESSAGE.format(
        id=message["id"],
        date=message["date"],
        time=message["date"][11:16],
        who=html.escape(message["from"]),
        media=link,
        text=html.escape(message["text"]),
    )


def page_name(page: int) -> str:
    return f"messages{page if page > 1 else ''}.html"


def write_pages(export: Export, title: str, chat: list[dict[str, Any]]) -> None:
    starts = range(0, len(chat), MESSAGES_IN_PAGE)
    link = '    <a class="pagination" href="{}">{} messages</a>\n'
    for page, start in enumerate(starts, start=1):
        part = chat[start : start + MESSAGES_IN_PAGE]
        text = PAGE.format(
            title=html.escape(title),
            before=link.format(page_name(page - 1), "Previous") if page > 1 else "",
            messages="".join(map(html_message, part)),
            after=link.format(page_name(page + 1), "Next") if page < len(starts) else "",
        )
        export.write(page_name(page), text.encode())


STYLE: Final = """body { margin: 0; font: 12px/18px 'Open Sans', sans-serif; }
.page_wrap { background-color: #ffffff; color: #000000; }
.page_header { position: fixed; z-index: 10; width: 100%; border-bottom: 1px solid #e3e6e8; }
.page_body { padding-top: 64px; width: 480px; margin: 0 auto; }
.message .from_name { color: #3892db; font-weight: 700; }
.details { color: #70777b; }
"""

SCRIPT: Final = """"use strict";

function CheckLocation() {
  var id = location.hash;
  var element = id.length > 1 && document.getElementById(id.substr(1));
  if (element) {
    element.scrollIntoView();
  }
}
"""


def write_export(folder: Path, seed: int = 1, scale: float = 1.0) -> int:
    """Fill ``folder`` with an export; the number of its files comes back."""
    export = Export(folder, seed, scale)
    chat = list(messages(export))
    name = "Anna Lindqvist"
    result = {"name": name, "type": "personal_chat", "id": 419204881, "messages": chat}
    export.write("result.json", json.dumps(result, ensure_ascii=False, indent=1).encode())
    write_pages(export, name, chat)
    export.write("css/style.css", STYLE.encode())
    export.write("js/script.js", SCRIPT.encode())
    for icon in ("back", "media_call", "media_file", "media_photo", "media_video", "media_voice"):
        colour = (export.chance.randrange(256), 120, 200)
        export.write(f"images/{icon}.png", png(24, colour))
        export.write(f"images/{icon}@2x.png", png(48, colour))
    return sum(len(names) for _, _, names in os.walk(folder))


def main() -> None:
    """The command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("folder", type=Path, help="where to write; made when missing")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other bytes")
    parser.add_argument("--scale", type=float, default=1.0, help="2 is twice as many files")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    many = write_export(folder, arguments.seed, arguments.scale)
    print(f"{many} files in {folder}")


if __name__ == "__main__":
    main()
