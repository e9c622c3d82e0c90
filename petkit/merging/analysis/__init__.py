"""What fine-tuning moved, and how far merged models agree: footprints, directions, policies, gains."""
