"""What TensorBoard's own back ends serve of a directory: what its pages would show."""

import json
import struct
import zlib

import numpy as np
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.histogram.histograms_plugin import HistogramsPlugin
from tensorboard.plugins.image.images_plugin import ImagesPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from tensorboard.plugins.text.text_plugin import TextPlugin

CONTEXT = RequestContext()


class Board:
    """TensorBoard, started on a directory.

    Args:
        log_dir: The directory.
        most_scalars: That are kept of a series.
    """

    def __init__(self, log_dir, most_scalars=1000):
        guidance = {"scalars": most_scalars, "histograms": 500, "images": 10, "text": 10}
        multiplexer = EventMultiplexer(tensor_size_guidance=guidance)
        multiplexer.AddRunsFromDirectory(str(log_dir))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(log_dir))
        plugins = {}
        context = TBContext(
            logdir=str(log_dir), data_provider=provider, plugin_name_to_instance=plugins
        )
        self._scalars = plugins["scalars"] = ScalarsPlugin(context)
        self._custom = CustomScalarsPlugin(context)
        self._histograms = HistogramsPlugin(context)
        self._images = ImagesPlugin(context)
        self._text = TextPlugin(context)

    def categories(self):
        """Title of each category of custom charts, with its charts by title."""
        layout = json.loads(self._custom.layout_impl(CONTEXT, "") or "{}")
        return {
            category["title"]: {chart["title"]: chart for chart in category["chart"]}
            for category in layout.get("category", [])
        }

    def charts(self, title):
        """The custom charts by title, of all categories whose title begins so."""
        found = {}
        for category, charts in self.categories().items():
            if category.startswith(f"{title}: "):
                found |= charts
        return found

    def lines(self, run, regexes):
        """Steps and values by tag in a chart of lines, as the front end asks for them."""
        pattern = regexes[0] if len(regexes) == 1 else "|".join(f"({r})" for r in regexes)
        served = self._custom.scalars_impl(CONTEXT, run, pattern, "")
        assert served["regex_valid"]
        return {
            tag: [(step, value) for _, step, value in events]
            for tag, events in served["tag_to_events"].items()
        }

    def descriptions(self, run):
        """The description of each scalar by tag, as HTML."""
        return {
            tag: told["description"]
            for tag, told in self._scalars.index_impl(CONTEXT, "")[run].items()
        }

    def histogram_names(self, run):
        """Display name and description of each histogram by tag."""
        index = self._histograms.index_impl(CONTEXT, "").get(run, {})
        return {tag: (told["displayName"], told["description"]) for tag, told in index.items()}

    def histograms(self, run, tag):
        """Rows (left, right, count) by step."""
        served, _ = self._histograms.histograms_impl(CONTEXT, tag, run, "")
        return {step: np.array(rows) for _, step, rows in served}

    def pictures(self, run, tag):
        """Pixels (height, width, 3) by step."""
        served = self._images._image_response_for_run(CONTEXT, "", run, tag, 0)
        keys = {image["step"]: image["query"] for image in served}
        return {
            step: decoded_png(
                self._images._get_generic_data_individual_image(
                    CONTEXT, dict(part.split("=", 1) for part in query.split("&"))["blob_key"]
                )
            )
            for step, query in keys.items()
        }

    def texts(self, run, tag):
        """HTML by step."""
        served = self._text.text_impl(CONTEXT, run, tag, "", True)
        return {event["step"]: event["text"] for event in served}


def decoded_png(content):
    """The pixels of a PNG with a palette and no filters, read by the letter of the format."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, packed = 8, b""
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        name, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", content[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(name + body)
        if name == b"IHDR":
            width, height, depth, kind, *_ = struct.unpack(">IIBBBBB", body)
            assert (depth, kind) == (8, 3)
        elif name == b"PLTE":
            palette = np.frombuffer(body, np.uint8).reshape(-1, 3)
        elif name == b"IDAT":
            packed += body
        place += 12 + size
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return palette[rows[:, 1:]]
