//! Tables of objects: what the model must have, and which fields must be reported.
