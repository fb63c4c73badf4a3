"""Codecs: float32 embeddings to small codes and back, one interface, fitted once per corpus.

codec = make_codec("pca64-int8").fit(train)      # training vectors only
q = codec.encode(x)                              # [N, width]
x = codec.decode(q)                              # [N, D]
save_codec(codec, "corpus/codec")                # codec.json + codec.npz
"""

from bocage.embeddings.codecs.codec import Codec
from bocage.embeddings.codecs.registry import codec_names, load_codec, make_codec, save_codec

__all__ = ["Codec", "codec_names", "load_codec", "make_codec", "save_codec"]
