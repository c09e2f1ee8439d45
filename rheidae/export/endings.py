"""How the names of exported files end."""

SUFFIXES = {"onnx": (".onnx",), "object": (".o",), "pt2": (".pt2",), "torchscript": (".ts", ".pt", ".torchscript")}
"""By format."""

ENDINGS = tuple(suffix for several in SUFFIXES.values() for suffix in several)
