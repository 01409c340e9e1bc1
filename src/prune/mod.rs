//! What to remove: scores, selections, pruners and schedules.
