"""Multi-frame objects as single images: one flat header per frame."""

from pydicom.dataset import Dataset, FileDataset

from bundle.dicom.elements import Unusable, quiet

_MULTI_FRAME_TAGS = (0x00280008, 0x00209221, 0x00209222, 0x00209311, 0x00080008)


def is_multi_frame(dataset: Dataset) -> bool:
    """Whether it describes its frames one by one (enhanced and legacy-converted CT)."""
    return "PerFrameFunctionalGroupsSequence" in dataset


def flat_headers(dataset: FileDataset, frames: int) -> list[Dataset]:
    """One header per frame, as if each frame were a CT Image: the functional groups' attributes at top level.

    Raises:
        Unusable: when they are not as many as `frames`.
    """
    with quiet():
        per_frame = list(dataset.PerFrameFunctionalGroupsSequence)
        shared = list(dataset.get("SharedFunctionalGroupsSequence", []))
    if len(per_frame) != frames:
        raise Unusable(f"NumberOfFrames is {frames}, but {len(per_frame)} frames are described")
    base = Dataset()
    for tag in dataset.keys():
        if tag.group != 0x5200 and tag not in _MULTI_FRAME_TAGS:
            base[tag] = dataset.get_item(tag)
    headers: list[Dataset] = []
    for number, groups in enumerate(per_frame, start=1):
        flat = FileDataset("", {}, file_meta=dataset.file_meta)
        flat.update({tag: base.get_item(tag) for tag in base.keys()})
        for item in [*shared, groups]:
            _merge_groups(flat, item)
        if "FrameType" in flat:
            flat.ImageType = flat.FrameType
        flat.ReferencedFrameNumber = number  # tells frames of one SOP instance apart
        headers.append(flat)
    return headers


def _merge_groups(flat: Dataset, groups: Dataset) -> None:
    for group in groups:
        if group.VR == "SQ" and len(group.value) == 1:
            for element in group.value[0]:
                flat[element.tag] = element
