package sniff

import (
	"errors"
	"fmt"
)

// ErrNotTLS is returned for bytes that do not open with a TLS record holding
// the beginning of a ClientHello.
var ErrNotTLS = errors.New("not a TLS ClientHello")

// ErrMalformed is wrapped by every error about a ClientHello that begins well
// and then breaks the RFC or one of the bounds below.
var ErrMalformed = errors.New("malformed TLS ClientHello")

// What a ClientHello may cost before its sender has shown anything. Browsers
// send 0.5 to 2 KB in one or two records; a long session ticket beside
// post-quantum key shares makes 17 KB. crypto/tls has the same bound of 64 KB.
const (
	maxHello   = 64 << 10 // bytes of handshake message
	maxRecords = 64       // records that the message may be spread over
)

const (
	recordHeaderLen    = 5
	handshakeHeaderLen = 4
	maxRecordLen       = 1 << 14 // RFC 8446 section 5.1

	typeHandshake   = 22
	typeClientHello = 1
)

// MaxPeek is the largest number of bytes that ClientHello ever asks for.
const MaxPeek = handshakeHeaderLen + maxHello + maxRecords*recordHeaderLen

// Hello is what routing wants to know of a ClientHello (RFC 8446 section
// 4.1.2). The zero value is a hello without extensions. It shares no memory
// with the bytes that it was read from.
type Hello struct {
	// ServerName is the host name asked for (RFC 6066 section 3), in lower
	// case, "" where none was. It is printable ASCII, but not necessarily a
	// valid name: clients do send IP addresses. With Encrypted Client Hello it
	// is the outer, public name.
	ServerName string
	// ALPN are the application protocols offered, in the client's order
	// (RFC 7301 section 3.1).
	ALPN []string
}

// ClientHello reads the ClientHello that the bytes p, the first of a
// connection, open with, across records and however they were segmented.
//
// Where p is good so far but too short, err is nil and need is not 0: a number
// of bytes, more than len(p) and at most MaxPeek, without which another call
// cannot get further. A caller that waits for it calls a few times per record;
// one that does not pays per call for the record headers only, since the
// message is looked into once, when it is complete. Bytes after the hello are
// ignored.
func ClientHello(p []byte) (hello Hello, need int, err error) {
	m, need, err := message(p)
	if need != 0 || err != nil {
		return Hello{}, need, err
	}
	hello, err = parseHello(m)
	return hello, 0, err
}

// message returns the body of the handshake message that p opens with, without
// its header. It copies only if several records hold the message.
func message(p []byte) (body []byte, need int, err error) {
	m := span{want: handshakeHeaderLen}
	for {
		n, err := recordHeader(p[m.off:], m.off == 0)
		switch {
		case err != nil:
			return nil, 0, err
		case n == 0:
			return nil, m.off + recordHeaderLen + m.missing(), nil
		}
		if err := m.record(p, n); err != nil {
			return nil, 0, err
		}
		switch {
		case m.need > 0:
			return nil, m.need, nil
		case m.missing() == 0:
			return m.body(p), 0, nil
		}
	}
}

// span walks the records that one handshake message is spread over.
type span struct {
	off     int // where the next record begins in p
	records int // before off
	got     int // bytes of the message in the records before off
	want    int // bytes of the message with its header, as far as known
	need    int // what p must grow to, once it has shown to be too short
	header  [handshakeHeaderLen]byte
}

func (m *span) missing() int { return m.want - m.got }

// record takes the record of n payload bytes at m.off.
func (m *span) record(p []byte, n int) error {
	payload := p[m.off+recordHeaderLen:]
	if m.got < handshakeHeaderLen {
		copied := copy(m.header[m.got:], payload[:min(n, len(payload))])
		if m.got == 0 && copied > 0 && m.header[0] != typeClientHello {
			return ErrNotTLS
		}
		if m.got+copied == handshakeHeaderLen {
			length := int(m.header[1])<<16 | int(m.header[2])<<8 | int(m.header[3])
			if length > maxHello {
				return fmt.Errorf("%w: %d bytes long, more than %d", ErrMalformed, length, maxHello)
			}
			m.want = handshakeHeaderLen + length
		}
	}
	take := min(n, m.missing())
	rest := m.missing() - take
	if m.records++; rest > 0 && m.records == maxRecords {
		return fmt.Errorf("%w: spread over more than %d records", ErrMalformed, maxRecords)
	}
	if len(payload) < take {
		m.need = m.off + recordHeaderLen + take
		if rest > 0 {
			m.need += recordHeaderLen + rest
		}
		return nil
	}
	m.got += take
	m.off += recordHeaderLen + n
	return nil
}

// body returns the message without its header; all of it is in p.
func (m *span) body(p []byte) []byte {
	if m.records == 1 {
		return p[recordHeaderLen:][handshakeHeaderLen:m.want]
	}
	whole := make([]byte, 0, m.want)
	for len(whole) < m.want {
		n := int(p[3])<<8 | int(p[4])
		p = p[recordHeaderLen:]
		n = min(n, m.want-len(whole))
		whole = append(whole, p[:n]...)
		p = p[n:]
	}
	return whole[handshakeHeaderLen:]
}

// recordHeader returns the payload length of the handshake record that p begins
// with, or 0 where p ends within the header. It refuses at the first wrong
// byte, so that no one waits for more of what is not TLS.
func recordHeader(p []byte, first bool) (length int, err error) {
	bad := func(what string, got any) error {
		if first {
			return ErrNotTLS
		}
		return fmt.Errorf("%w: a later record has %s %v", ErrMalformed, what, got)
	}
	if len(p) > 0 && p[0] != typeHandshake {
		return 0, bad("type", p[0])
	}
	// The minor version says 1.0 or 1.2 whatever is meant (RFC 8446 section
	// 5.1) and must be ignored; the major one has been 3 since 1996.
	if len(p) > 1 && p[1] != 3 {
		return 0, bad("major version", p[1])
	}
	if len(p) < recordHeaderLen {
		return 0, nil
	}
	length = int(p[3])<<8 | int(p[4])
	// Handshake fragments are never empty (RFC 8446 section 5.1).
	if length == 0 || length > maxRecordLen {
		return 0, bad("length", length)
	}
	return length, nil
}
