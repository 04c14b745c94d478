"""The TFLite harness: measures any space on any device."""
