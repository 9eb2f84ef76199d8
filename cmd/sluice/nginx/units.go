package nginx

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/sluice/router"
)

// units of nginx's times; a number without one is of seconds.
var units = map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "": time.Second, "m": time.Minute, "h": time.Hour,
	"d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "M": 30 * 24 * time.Hour, "y": 365 * 24 * time.Hour,
}

// duration reads a time such as "10m", "1h30m" or "86400".
func duration(s string) (time.Duration, error) {
	var sum time.Duration
	rest := strings.ReplaceAll(s, " ", "")
	for rest != "" {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		j := i
		for j < len(rest) && (rest[j] < '0' || rest[j] > '9') {
			j++
		}
		unit, known := units[rest[i:j]]
		if err != nil || !known || n > int64(100*365*24*time.Hour/unit) {
			return 0, fmt.Errorf("%q is not a time", s)
		}
		sum += time.Duration(n) * unit
		rest = rest[j:]
	}
	if s == "" {
		return 0, fmt.Errorf("a time is missing")
	}
	return sum, nil
}

// durationText reads a time and writes it as keys have it.
func durationText(s string) (string, error) {
	d, err := duration(s)
	return router.DurationText(d), err
}

// bytesText reads a size such as "10m" and writes it as keys have it; "" for 0,
// which is no bound.
func bytesText(s string) (string, error) {
	number := strings.TrimRight(s, "kKmMgG")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || len(s)-len(number) > 1 {
		return "", fmt.Errorf("%q is not a size", s)
	}
	if n == 0 {
		return "", nil
	}
	unit := map[string]string{"": "", "k": "KiB", "m": "MiB", "g": "GiB"}[strings.ToLower(s[len(number):])]
	return strconv.FormatInt(n, 10) + unit, nil
}

// network reads an address or a network; all is what "all" is.
func network(s string) (text string, all bool, err error) {
	if s == "all" {
		return "", true, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return "", false, fmt.Errorf("%q is not a network", s)
		}
		return a.String(), false, nil
	}
	return p.Masked().String(), p.Bits() == 0, nil
}

// listen is what a listen directive says.
type listen struct {
	d            *Directive
	host         string // "": every address
	first, last  int    // ports
	udp          bool
	tls          bool
	quic         bool
	proxied      bool // connections open with a PROXY header
	defaultsHere bool // default_server
}

// parseListen reads a listen directive.
func parseListen(d *Directive) (l listen, err error) {
	l.d = d
	addr := d.arg(0)
	if strings.HasPrefix(addr, "unix:") {
		return l, fmt.Errorf("it is a socket of this machine alone")
	}
	port := "80"
	if i := strings.LastIndexByte(addr, ':'); i >= 0 && !strings.HasSuffix(addr, "]") {
		l.host, port = addr[:i], addr[i+1:]
	} else if addr != "" && strings.Trim(addr, "0123456789-") == "" {
		port = addr
	} else {
		l.host = addr
	}
	if l.host == "*" || l.host == "0.0.0.0" || l.host == "[::]" {
		l.host = ""
	}
	first, last, ranged := strings.Cut(port, "-")
	if l.first, err = router.ParsePort(first); err != nil {
		return l, err
	}
	l.last = l.first
	if ranged {
		if l.last, err = router.ParsePort(last); err != nil || l.last < l.first {
			return l, fmt.Errorf("%q is not a range of ports", port)
		}
	}
	for i := 1; i < len(d.Args); i++ {
		switch d.Args[i] {
		case "udp":
			l.udp = true
		case "ssl":
			l.tls = true
		case "quic":
			l.quic, l.tls = true, true
		case "proxy_protocol":
			l.proxied = true
		case "default_server", "default":
			l.defaultsHere = true
		}
	}
	return l, nil
}
