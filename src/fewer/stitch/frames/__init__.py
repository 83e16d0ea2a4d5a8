"""From a video, a folder, a DICOM file or arrays to frames that are fit to be used."""
