"""DICOM in and out: folder or ZIP -> index -> checked series -> exact HU volume -> derived series.

`index` finds series from headers alone, `volume` is the one type a CT volume has, `pixels` decodes stored
values exactly, `reader` serves MONAI's transforms, `writer` makes a derived series.
"""
