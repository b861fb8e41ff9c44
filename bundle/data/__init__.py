"""Training data: cases from folders, splits by patient, prepared cases on disk, patches, samplers."""
