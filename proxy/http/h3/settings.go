package h3

// The settings that matter here (RFC 9114 section 7.2.4.1, RFC 9204 section 5,
// RFC 9220 section 3, RFC 9297 section 2.1.1).
const (
	settingTableCapacity  = 0x1
	settingMaxSection     = 0x6
	settingBlockedStreams = 0x7
	settingConnect        = 0x8
	settingDatagram       = 0x33
)

// AppendSettings appends a SETTINGS frame: sections of fields up to maxSection
// bytes, extended CONNECT, no dynamic table (which is the default).
func AppendSettings(b []byte, maxSection int) []byte {
	var content [16]byte
	c := AppendVarint(content[:0], settingMaxSection)
	c = AppendVarint(c, uint64(maxSection))
	c = append(c, settingConnect, 1)
	return append(AppendFrameHeader(b, FrameSettings, uint64(len(c))), c...)
}

// CheckSettings checks the content of a SETTINGS frame. Nothing in it changes
// what is sent: no dynamic table is used, and nothing is pushed.
func CheckSettings(b []byte) error {
	var seen []uint64
	for len(b) > 0 {
		id, value, n := FrameHeader(b) // two integers as well
		if n == 0 {
			return errSettingShort
		}
		b = b[n:]
		for _, s := range seen {
			if s == id {
				return errSettingTwice
			}
		}
		seen = append(seen, id)
		switch id {
		case 0x0, 0x2, 0x3, 0x4, 0x5:
			return errSettingOld
		case settingConnect, settingDatagram:
			if value > 1 {
				return errSettingValue
			}
		}
	}
	return nil
}
