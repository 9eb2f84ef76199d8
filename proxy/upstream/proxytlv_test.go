package upstream_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/remotegpu/sluice/proxy/upstream"
)

// tlv returns one type-length-value.
func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// tlvsOfHAProxy is what "send-proxy-v2 proxy-v2-options authority,unique-id,ssl,
// cert-cn,ssl-cipher" has, and two that nobody knows.
var tlvsOfHAProxy = tlv(0x01, "h2") + tlv(0x02, "env-7.remotegpu.com") + tlv(0x05, "c0ffee\x00id") +
	tlv(0x20, "\x01\x00\x00\x00\x00"+tlv(0x21, "TLSv1.3")+tlv(0x23, "TLS_AES_128_GCM_SHA256")+tlv(0x22, "client.x-gpu.com")) +
	tlv(0xe5, "custom") + tlv(0xfe, "") + tlv(0xe5, "twice")

// v2Header returns a header for TCP over IPv4 with these TLVs.
func v2Header(tlvs string) string {
	length := binary.BigEndian.AppendUint16(nil, uint16(12+len(tlvs)))
	return sigV2 + "\x21\x11" + string(length) + "\xc0\x00\x02\x07\xc6\x33\x64\x01\xc7\x38\x01\xbb" + tlvs
}

// withChecksum appends a right checksum to header, of version 2.
func withChecksum(header string) string {
	raw := append([]byte(header), 0x03, 0, 4, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(raw[14:], binary.BigEndian.Uint16(raw[14:])+7)
	sum := crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(raw[len(raw)-4:], sum)
	return string(raw)
}

// sound reports whether the TLVs of a header add up, by go-proxyproto, and
// whether there is a checksum among them, which that does not look at.
func sound(h *proxyproto.Header) (ok, summed bool) {
	if h.Version != 2 || h.TransportProtocol.IsUnspec() {
		return true, false // what a LOCAL header has may be anything
	}
	tlvs, err := h.TLVs()
	for _, t := range tlvs {
		summed = summed || t.Type == proxyproto.PP2_TYPE_CRC32C
	}
	return err == nil, summed
}

func TestTLVsGoOn(t *testing.T) {
	padded := tlv(0x04, strings.Repeat("\x00", 30))
	for name, header := range map[string]string{
		"plain": v2Header(tlvsOfHAProxy), "checksum": withChecksum(v2Header(tlvsOfHAProxy)),
		"padding": v2Header(padded + tlvsOfHAProxy + padded), "all": withChecksum(v2Header(padded + tlvsOfHAProxy)),
	} {
		h, size, err := upstream.ParseProxyHeader([]byte(header + "more"))
		if err != nil || size != len(header) || string(h.TLVs) != tlvsOfHAProxy {
			t.Errorf("%s: %q, %v, want %q", name, h.TLVs, err, tlvsOfHAProxy)
			continue
		}
		var w bytes.Buffer
		if err := upstream.WriteProxyHeader(&w, "v2", h); err != nil || w.String() != v2Header(tlvsOfHAProxy) {
			t.Errorf("%s: wrote %q, %v", name, w.String(), err)
		}
		w.Reset()
		if err := upstream.WriteProxyHeader(&w, "v1", h); err != nil || w.String() != "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n" {
			t.Errorf("%s: version 1: wrote %q, %v", name, w.String(), err)
		}
	}
	// As the next proxy reads it, with one address IPv6 now.
	h := upstream.ProxyHeader{Src: v4src, Dst: v6dst, TLVs: upstream.TLVs(tlvsOfHAProxy)}
	raw, err := h.Append([]byte("<"), "v2")
	if err != nil {
		t.Fatal(err)
	}
	theirs, payload, err := proxyproto.ParseUDPDatagram(append(raw[1:], "rest"...))
	if err != nil || string(payload) != "rest" {
		t.Fatalf("%v, %q", err, payload)
	}
	tlvs, err := theirs.TLVs()
	if err != nil || len(tlvs) != 7 {
		t.Fatalf("%v, %v", tlvs, err)
	}
	if name, ok := tlvs[3], tlvparse.IsSSL(tlvs[3]); !ok {
		t.Errorf("the fourth is %v, want what TLS says", name)
	} else if ssl, err := tlvparse.SSL(tlvs[3]); err != nil || !ssl.ClientSSL() {
		t.Errorf("%+v, %v", ssl, err)
	}
}

func TestTLVsOfDatagrams(t *testing.T) {
	h := upstream.ProxyHeader{Src: v6src, Dst: v6dst, TLVs: upstream.TLVs(tlvsOfHAProxy)}
	raw, err := h.AppendUDP(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, datagram := range map[string]string{"plain": string(raw), "checksum": withChecksum(string(raw))} {
		got, payload, err := upstream.SplitUDPProxyHeader([]byte(datagram + "payload"))
		if err != nil || got != h || string(payload) != "payload" {
			t.Errorf("%s: %+v, %q, %v", name, got, payload, err)
		}
	}
	local, payload, err := upstream.SplitUDPProxyHeader([]byte(sigV2 + "\x20\x00\x00\x00ping"))
	if err != nil || local != (upstream.ProxyHeader{}) || string(payload) != "ping" {
		t.Errorf("a health check: %+v, %q, %v", local, payload, err)
	}
	for datagram, want := range map[string]string{
		"": "not present", "ping": "not present", v2Header("") + "x": "no UDP", string(raw[:len(raw)-1]): "",
		"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\nx": "version 1 cannot describe UDP",
	} {
		if h, _, err := upstream.SplitUDPProxyHeader([]byte(datagram)); err == nil || !strings.Contains(err.Error(), want) || h != (upstream.ProxyHeader{}) {
			t.Errorf("%q: %+v, %v, want %q", datagram, h, err, want)
		}
	}
}

func TestTLVsRefused(t *testing.T) {
	good := withChecksum(v2Header(tlvsOfHAProxy))
	for i := range good {
		if i == 12 || i == 14 || i == 15 || i == len(good)-7 {
			continue // it would be another command, another length, or have no checksum
		}
		bad := []byte(good)
		bad[i] ^= 0x40
		if h, _, err := upstream.ParseProxyHeader(bad); err == nil {
			t.Errorf("byte %d changed: %+v", i, h)
		}
	}
	for name, tc := range map[string]struct{ header, want string }{
		"cut in the type":     {v2Header("\x02"), "cut short"},
		"cut in the length":   {v2Header("\x02\x00"), "cut short"},
		"cut in the value":    {v2Header(tlv(0x02, "name") + "\x05\x00\x05abcd"), "cut short"},
		"checksum of 2 bytes": {v2Header(tlv(0x03, "ab")), "not one of four bytes"},
		"two checksums":       {withChecksum(withChecksum(v2Header(""))), "checksum"},
		"wrong checksum":      {v2Header(tlv(0x03, "abcd")), "its checksum is 61626364, and should be "},
	} {
		h, _, err := upstream.ParseProxyHeader([]byte(tc.header))
		if err == nil || !strings.Contains(err.Error(), tc.want) || h != (upstream.ProxyHeader{}) {
			t.Errorf("%s: %+v, %v, want %q", name, h, err, tc.want)
		}
	}
}

// FuzzProxyHeaderRoundTrip wants that what is taken in goes out as it was, and
// that datagrams and connections agree.
func FuzzProxyHeaderRoundTrip(f *testing.F) {
	for _, h := range goodHeaders {
		f.Add([]byte(h.header + "rest"))
	}
	f.Add([]byte(withChecksum(v2Header(tlvsOfHAProxy))))
	f.Add([]byte(strings.Replace(v2Header(tlvsOfHAProxy), "\x21\x11", "\x21\x12", 1) + "payload"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if h, size, err := upstream.ParseProxyHeader(p); err == nil && size <= len(p) && h.Src.IsValid() {
			raw, err := h.Append(nil, "v2")
			if err != nil {
				t.Fatalf("%q: cannot be sent on: %v", p, err)
			}
			again, n, err := upstream.ParseProxyHeader(raw)
			if err != nil || n != len(raw) || again != h {
				t.Fatalf("%q: %+v came back as %+v, %v", p, h, again, err)
			}
		}
		if h, payload, err := upstream.SplitUDPProxyHeader(p); err == nil {
			if !bytes.HasSuffix(p, payload) {
				t.Fatalf("%q: the payload is %q", p, payload)
			}
			if h.Src.IsValid() {
				raw, err := h.AppendUDP(nil)
				if err != nil {
					t.Fatalf("%q: cannot be sent on: %v", p, err)
				}
				again, rest, err := upstream.SplitUDPProxyHeader(raw)
				if err != nil || len(rest) > 0 || again != h {
					t.Fatalf("%q: %+v came back as %+v, %v", p, h, again, err)
				}
			}
		}
	})
}
