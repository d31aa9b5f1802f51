"""What the notebooks import besides the mechanisms: pictures, data, exercises and the export."""
