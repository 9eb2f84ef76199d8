package h2

import "encoding/binary"

// SettingID names a setting (RFC 9113 section 6.5.2).
type SettingID uint16

// The settings.
const (
	SettingHeaderTableSize      SettingID = 0x1
	SettingEnablePush           SettingID = 0x2
	SettingMaxConcurrentStreams SettingID = 0x3
	SettingInitialWindowSize    SettingID = 0x4
	SettingMaxFrameSize         SettingID = 0x5
	SettingMaxHeaderListSize    SettingID = 0x6
	SettingEnableConnect        SettingID = 0x8 // RFC 8441 section 3
)

// Setting is one setting of a SETTINGS frame.
type Setting struct {
	ID    SettingID
	Value uint32
}

// Settings are those of a peer that matter to who sends to it.
type Settings struct {
	HeaderTableSize uint32 // bytes
	MaxStreams      uint32
	InitialWindow   uint32 // bytes
	MaxFrame        uint32 // bytes
	MaxHeaderList   uint32 // bytes, as section 6.5.2 counts
	EnablePush      bool
	EnableConnect   bool // RFC 8441
}

// DefaultSettings returns what holds before a peer has said anything.
func DefaultSettings() Settings {
	return Settings{HeaderTableSize: 4096, MaxStreams: 1<<32 - 1, InitialWindow: InitialWindow, MaxFrame: MaxFrame,
		MaxHeaderList: 1<<32 - 1, EnablePush: true}
}

// Update takes over the payload of a SETTINGS frame, and says what is wrong with
// it. Settings that are not known are ignored.
func (s *Settings) Update(payload []byte) error {
	for ; len(payload) >= 6; payload = payload[6:] {
		id, v := SettingID(binary.BigEndian.Uint16(payload)), binary.BigEndian.Uint32(payload[2:])
		switch id {
		case SettingHeaderTableSize:
			s.HeaderTableSize = v
		case SettingEnablePush:
			if v > 1 {
				return &ConnError{ProtocolError, "SETTINGS_ENABLE_PUSH is neither 0 nor 1"}
			}
			s.EnablePush = v == 1
		case SettingMaxConcurrentStreams:
			s.MaxStreams = v
		case SettingInitialWindowSize:
			if v > MaxWindow {
				return &ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE is beyond the largest window"}
			}
			s.InitialWindow = v
		case SettingMaxFrameSize:
			if v < MaxFrame || v > 1<<24-1 {
				return &ConnError{ProtocolError, "SETTINGS_MAX_FRAME_SIZE is not between 2^14 and 2^24-1"}
			}
			s.MaxFrame = v
		case SettingMaxHeaderListSize:
			s.MaxHeaderList = v
		case SettingEnableConnect:
			if v > 1 || v == 0 && s.EnableConnect {
				return &ConnError{ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL is not 0 or 1, or was taken back"}
			}
			s.EnableConnect = v == 1
		}
	}
	return nil
}
