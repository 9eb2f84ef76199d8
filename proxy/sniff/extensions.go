package sniff

import (
	"fmt"
	"slices"
)

const (
	extServerName = 0  // RFC 6066 section 3
	extALPN       = 16 // RFC 7301 section 3.1

	nameTypeHost = 0

	// maxExtensions bounds the search for duplicates; a browser sends about 20.
	maxExtensions = 128
	// maxServerName is the longest DNS name (RFC 1035 section 2.3.4).
	maxServerName = 255
)

// parseHello reads the body of a ClientHello message.
func parseHello(m []byte) (Hello, error) {
	in := input(m)
	_, versionOK := in.bytes(2)
	_, randomOK := in.bytes(32)
	session, sessionOK := in.vector8()
	suites, suitesOK := in.vector16()
	compression, compressionOK := in.vector8()
	switch {
	case !versionOK || !randomOK || !sessionOK || !suitesOK || !compressionOK:
		return Hello{}, fmt.Errorf("%w: it ends before its extensions", ErrMalformed)
	case len(session) > 32:
		return Hello{}, fmt.Errorf("%w: a session id of %d bytes", ErrMalformed, len(session))
	case len(suites) == 0 || len(suites)%2 != 0:
		return Hello{}, fmt.Errorf("%w: %d bytes of cipher suites", ErrMalformed, len(suites))
	case len(compression) == 0:
		return Hello{}, fmt.Errorf("%w: no compression method", ErrMalformed)
	case len(in) == 0:
		return Hello{}, nil // extensions are optional up to TLS 1.2
	}
	extensions, ok := in.vector16()
	if !ok || len(in) != 0 {
		return Hello{}, fmt.Errorf("%w: the extensions do not end where the message does", ErrMalformed)
	}
	return parseExtensions(extensions)
}

// parseExtensions reads the two extensions that matter and the frames of all
// others, the reserved ones that clients send to keep servers tolerant (RFC
// 8701) among them.
func parseExtensions(in input) (Hello, error) {
	var hello Hello
	var seen [maxExtensions]uint16
	for n := 0; len(in) > 0; n++ {
		typ, typeOK := in.uint16()
		data, dataOK := in.vector16()
		switch {
		case !typeOK || !dataOK:
			return Hello{}, fmt.Errorf("%w: an extension is cut short", ErrMalformed)
		case n == maxExtensions:
			return Hello{}, fmt.Errorf("%w: more than %d extensions", ErrMalformed, maxExtensions)
		case slices.Contains(seen[:n], typ):
			return Hello{}, fmt.Errorf("%w: extension %d comes twice", ErrMalformed, typ)
		}
		seen[n] = typ
		var err error
		switch typ {
		case extServerName:
			hello.ServerName, err = parseServerName(data)
		case extALPN:
			hello.ALPN, err = parseALPN(data)
		}
		if err != nil {
			return Hello{}, err
		}
	}
	return hello, nil
}

func parseServerName(data input) (string, error) {
	list, ok := data.vector16()
	if !ok || len(data) != 0 || len(list) == 0 {
		return "", fmt.Errorf("%w: the list of server names has a wrong length", ErrMalformed)
	}
	var host []byte
	for len(list) > 0 {
		typ, typeOK := list.uint8()
		name, nameOK := list.vector16()
		switch {
		case !typeOK || !nameOK || len(name) == 0:
			return "", fmt.Errorf("%w: a server name has a wrong length", ErrMalformed)
		case typ != nameTypeHost:
			continue
		case host != nil:
			return "", fmt.Errorf("%w: two server names", ErrMalformed)
		}
		host = name
	}
	return lowerName(host)
}

// lowerName returns name in lower case, or refuses one that could mislead
// whoever reads it in a log. An IP address is let through: RFC 6066 forbids it,
// and clients send it all the same.
func lowerName(name []byte) (string, error) {
	if len(name) > maxServerName {
		return "", fmt.Errorf("%w: a server name of %d bytes", ErrMalformed, len(name))
	}
	var lower [maxServerName]byte
	for i, c := range name {
		switch {
		case c <= ' ' || c >= 0x7f:
			return "", fmt.Errorf("%w: the server name holds the byte %#02x", ErrMalformed, c)
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	if len(name) > 0 && name[len(name)-1] == '.' {
		return "", fmt.Errorf("%w: the server name ends with a dot (RFC 6066 section 3)", ErrMalformed)
	}
	return string(lower[:len(name)]), nil
}

func parseALPN(data input) ([]string, error) {
	list, ok := data.vector16()
	if !ok || len(data) != 0 || len(list) == 0 {
		return nil, fmt.Errorf("%w: the list of application protocols has a wrong length", ErrMalformed)
	}
	protocols := make([]string, 0, 2) // as browsers send
	for len(list) > 0 {
		name, ok := list.vector8()
		if !ok || len(name) == 0 {
			return nil, fmt.Errorf("%w: an application protocol has a wrong length", ErrMalformed)
		}
		protocols = append(protocols, protocolName(name))
	}
	return protocols, nil
}

// protocolName is string(name) without allocating the two that nearly every
// client offers.
func protocolName(name []byte) string {
	switch string(name) {
	case "h2":
		return "h2"
	case "http/1.1":
		return "http/1.1"
	}
	return string(name)
}

// input is what is left to read. Its methods take from its front, or report
// false and leave it in an unspecified state.
type input []byte

func (in *input) bytes(n int) (input, bool) {
	if len(*in) < n {
		return nil, false
	}
	b := (*in)[:n]
	*in = (*in)[n:]
	return b, true
}

func (in *input) uint8() (int, bool) {
	b, ok := in.bytes(1)
	if !ok {
		return 0, false
	}
	return int(b[0]), true
}

func (in *input) uint16() (uint16, bool) {
	b, ok := in.bytes(2)
	if !ok {
		return 0, false
	}
	return uint16(b[0])<<8 | uint16(b[1]), true
}

// vector8 takes a vector with a length of one byte (RFC 8446 section 3.4).
func (in *input) vector8() (input, bool) {
	n, ok := in.uint8()
	if !ok {
		return nil, false
	}
	return in.bytes(n)
}

// vector16 takes a vector with a length of two bytes.
func (in *input) vector16() (input, bool) {
	n, ok := in.uint16()
	if !ok {
		return nil, false
	}
	return in.bytes(int(n))
}
