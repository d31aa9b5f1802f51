"""What the notebooks import besides the mechanisms: pictures, data, exercises and the export."""

from attn_course.course import kernel as kernel  # records from the first import on what runs
