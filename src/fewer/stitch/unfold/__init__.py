"""From a picture to the wall of the tube and back: lens, lumen, camera pose, strips."""
