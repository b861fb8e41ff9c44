"""What a derived slice's header takes over from its source, and what it must not.

PS3.3 A.3 (CT Image IOD). Facts of the patient, study, acquisition and geometry stay; facts of the source's pixels,
private elements and everything outside the IOD's groups go.
"""

import copy
import re
from collections.abc import Iterable

from pydicom import charset, config
from pydicom.datadict import dictionary_has_tag, dictionary_is_retired, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import format_number_as_ds, validate_value

from bundle.dicom.elements import quiet, text
from bundle.dicom.uids import is_valid_uid

_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028)
_KEPT_OF_OTHER_GROUPS = (
    "RequestAttributesSequence",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
)
_DROPPED = (
    # of the source's instance, encoding and pixels
    "SpecificCharacterSet InstanceCreatorUID RelatedGeneralSOPClassUID OriginalSpecializedSOPClassUID "
    "SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries "
    "SmallestImagePixelValueInPlane LargestImagePixelValueInPlane PixelPaddingValue PixelPaddingRangeLimit "
    "NumberOfFrames FrameIncrementPointer PlanarConfiguration PixelAspectRatio VOILUTSequence ModalityLUTSequence "
    "PixelIntensityRelationship PixelIntensityRelationshipSign IconImageSequence "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    # of an earlier derivation, or of another object
    "DerivationDescription DerivationCodeSequence SourceImageSequence ReferencedPerformedProcedureStepSequence "
    "ReferencedFrameNumber SourceInstanceSequence ReferencedInstanceSequence ReferencedRawDataSequence "
    "ReferencedSOPClassUID ReferencedSOPInstanceUID SynchronizationFrameOfReferenceUID CTExposureSequence "
    "ReferencedImageEvidenceSequence SourceImageEvidenceSequence DigitalSignaturesSequence MACParametersSequence "
    "EncryptedAttributesSequence HL7StructuredDocumentReferenceSequence ReferencedPresentationStateSequence "
    # of multi-frame objects
    "FrameType FrameReferenceDateTime FrameAcquisitionDateTime FrameAcquisitionNumber FrameAcquisitionDuration "
    "DimensionIndexValues StackID InStackPositionNumber DimensionIndexSequence DimensionOrganizationSequence "
    "DimensionOrganizationType VolumetricProperties VolumeBasedCalculationTechnique PixelPresentation "
    "ContentQualification PresentationLUTShape AcquisitionDateTimeSynchronized ConcatenationUID"
).split()
_TYPE_2 = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
    "AccessionNumber Manufacturer KVP AcquisitionNumber SliceThickness PositionReferenceIndicator PatientPosition"
).split()
# Defined terms of PS3.16 Annex L whose body part is not one of a pair.
_UNPAIRED = frozenset(
    "ABDOMEN ABDOMENPELVIS AORTA BLADDER BRAIN CHEST CHESTABDOMEN CHESTABDPELVIS COCCYX COLON CSPINE CTSPINE "
    "ESOPHAGUS GALLBLADDER HEAD HEADNECK HEART LIVER LSPINE LSSPINE MEDIASTINUM NECK NECKCHEST NECKCHESTABDOMEN "
    "NECKCHESTABDPELV PANCREAS PELVIS PROSTATE SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TLSPINE TRACHEA TSPINE "
    "UTERUS WHOLEBODY".split()
)
_RAISE = config.RAISE
_TEXT_LIMITS = {"SH": 16, "LO": 64, "ST": 1024, "LT": 10240, "PN": 64}
_CODE_STRING = re.compile(r"[A-Z0-9 _]{0,16}")


def series_description(source: str, suffix: str) -> str:
    """The source's Series Description and how it was derived, at most 64 characters: the source's part is cut."""
    room = max(_TEXT_LIMITS["LO"] - len(suffix) - 1, 0)
    return f"{source[:room].strip()} {suffix}".strip()[: _TEXT_LIMITS["LO"]]


def inherited(source: Dataset) -> Dataset:
    """A new header with what a derived CT image may take over from `source`, every value valid for its VR."""
    header = Dataset()
    source = copy.deepcopy(source)  # pydicom converts elements in place, and the source is shared
    with quiet():
        characters = text(source, "SpecificCharacterSet").split("\\")
        known = all(name in charset.python_encoding or name == "" for name in characters)
        if known and any(characters):
            header.SpecificCharacterSet = characters if len(characters) > 1 else characters[0]
        elif not known:
            header.SpecificCharacterSet = "ISO_IR 192"  # what pydicom could decode is written as Unicode
        for tag in sorted(source.keys()):
            if _may_stay(tag):
                element = _valid(_element(source, tag))
                if element is not None:
                    header[tag] = element
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, "")
    _settle_related(header)
    return header


def _may_stay(tag: BaseTag) -> bool:
    if tag.is_private or not dictionary_has_tag(tag) or dictionary_is_retired(tag):
        return False
    keyword = keyword_for_tag(tag)
    return (tag.group in _GROUPS or keyword in _KEPT_OF_OTHER_GROUPS) and keyword not in _DROPPED


def _settle_related(header: Dataset) -> None:
    """Elements that are right only together."""
    if "ImageLaterality" in header or text(header, "BodyPartExamined") in _UNPAIRED:
        _remove(header, ("Laterality",))
    elif "Laterality" not in header:
        header.Laterality = ""  # 2C: a body part that is not known may be a paired one
    if text(header, "SpacingBetweenSlices").startswith("-"):
        _remove(header, ("SpacingBetweenSlices",))  # some scanners write a direction into it; CT forbids that
    widths = _values(header, "WindowWidth")
    if not widths or len(widths) != len(_values(header, "WindowCenter")) or min(map(float, widths)) < 1:
        _remove(header, ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction"))
    elif len(_values(header, "WindowCenterWidthExplanation")) != len(widths):
        _remove(header, ("WindowCenterWidthExplanation",))
    if "CTDIvol" in header and "CTDIPhantomTypeCodeSequence" not in header:
        _remove(header, ("CTDIvol",))
    if text(header, "LossyImageCompression") != "01":
        _remove(header, ("LossyImageCompressionRatio", "LossyImageCompressionMethod"))
    ratios, methods = (_values(header, f"LossyImageCompression{name}") for name in ("Ratio", "Method"))
    if ratios and methods and len(ratios) != len(methods):  # PS3.3 C.7.6.1.1.5: they correspond, or mislead
        _remove(header, ("LossyImageCompressionMethod",))


def _values(header: Dataset, keyword: str) -> list[str]:
    value = text(header, keyword)
    return value.split("\\") if value else []


def _remove(header: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        header.pop(keyword, None)


def _element(source: Dataset, tag: BaseTag) -> DataElement | None:
    """The element as pydicom reads it; None when it cannot."""
    try:
        return source[tag]
    except Exception:  # undecodable text, impossible numbers: nothing that could be handed on
        return None


def _valid(element: DataElement | None) -> DataElement | None:
    """A copy of `element` with a value its VR allows; None when there is no such value."""
    if element is None:
        return None
    if element.VR == "SQ":
        return _valid_sequence(element)
    value = element.value
    if value is None or value == "":
        return DataElement(element.tag, element.VR, None if element.VR in ("DS", "IS") else "")
    many = hasattr(value, "__iter__") and not isinstance(value, str | bytes) and not hasattr(value, "components")
    values = [_valid_value(element.VR, one) for one in (value if many else [value])]
    if any(one is None for one in values):
        return None
    return DataElement(element.tag, element.VR, values if many else values[0])


def _valid_sequence(element: DataElement) -> DataElement | None:
    """A sequence is kept whole or not at all: an item without a required element is worse than no item."""
    items = []
    for item in element.value:
        kept = Dataset()
        for tag in item.keys():
            if tag.is_private or not dictionary_has_tag(tag) or dictionary_is_retired(tag):
                continue
            valid = _valid(_element(item, tag))
            if valid is None or (valid.VR == "UI" and not valid.value):
                return None
            kept[tag] = valid
        if "ReferencedSOPInstanceUID" in kept and "ReferencedSOPClassUID" not in kept:
            return None  # PS3.3 table 10-11 wants both
        items.append(kept)
    return DataElement(element.tag, "SQ", Sequence(items)) if items else None


def _valid_value(vr: str, value: object) -> object | None:
    """`value` itself where its VR allows it, else the nearest allowed one, else None."""
    try:
        if vr == "UI":
            return value if is_valid_uid(str(value)) else None
        if vr == "DS":
            shown = str(getattr(value, "original_string", value)).strip()
            return shown if len(shown) <= 16 else format_number_as_ds(float(shown))
        if vr == "IS":
            return str(int(float(str(value))))
        if vr == "CS":
            return value if _CODE_STRING.fullmatch(str(value)) else None
        if vr in _TEXT_LIMITS and vr != "PN":
            value = str(value)[: _TEXT_LIMITS[vr]]
        validate_value(vr, value, _RAISE)
    except (ValueError, TypeError, OverflowError):
        return None
    return value


def set_values(header: Dataset, **values: object) -> None:
    """Set elements by keyword; sequences are lists of Datasets."""
    for keyword, value in values.items():
        assert tag_for_keyword(keyword) is not None, keyword
        setattr(header, keyword, Sequence(value) if isinstance(value, list) and keyword.endswith("Sequence") else value)


def code(value: str, meaning: str) -> Dataset:
    """A coded concept of DICOM's own scheme (PS3.16)."""
    item = Dataset()
    set_values(item, CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)
    return item


def decimal_string(value: float) -> str:
    """A number as a DS of at most 16 characters: whole ones as integers, others as exactly as it goes."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(format_number_as_ds(value))
