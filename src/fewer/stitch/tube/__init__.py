"""The benchmark "tube": a rendered oesophagus whose every pixel knows where on the wall it lies."""
