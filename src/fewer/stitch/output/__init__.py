"""What a run leaves behind: pictures, provenance, report and one page to look at them."""
