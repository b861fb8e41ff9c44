"""Restoration: whole volumes in tiles, series by series, with derived DICOM as the result."""
