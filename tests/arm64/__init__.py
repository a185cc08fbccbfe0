"""What a Raspberry Pi's processor is given: Debian's arm64 packages, the wheel and the units, by emulation."""
