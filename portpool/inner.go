package portpool

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// innerVar stands, in the host of a Route, for the port inside an environment that
// the client names: 8000--env-6hif.remotegpu.com leads to port 8000.
const innerVar = "${inner}"

// Inner reports whether clients name the port inside the environment.
func (r Route) Inner() bool { return strings.Contains(r.Host, innerVar) }

// hostFor returns the host of the route of an environment that allows some ports
// inside, where clients name one.
func (r Route) hostFor(values Values, allowed router.Ports) (string, error) {
	if !r.Inner() {
		return values.Expand(r.Host)
	}
	if strings.Count(r.Host, innerVar) > 1 {
		return "", fmt.Errorf("%s stands there more than once", innerVar)
	}
	if before, after, _ := strings.Cut(r.Host, innerVar); joins(before, len(before)-1) || joins(after, 0) {
		return "", fmt.Errorf("%s stands next to a letter, a digit or another variable, so that 1 and 11 could not be told apart; put a hyphen or a dot between", innerVar)
	}
	if len(allowed) == 0 {
		return "", fmt.Errorf("clients name the port inside, and the environment allows none: give inner_ports, such as 3000,8000-8999")
	}
	return innerHost(r.Host, values, allowed)
}

// joins reports whether what is at i of a text runs into a number beside it.
func joins(text string, i int) bool {
	if i < 0 || i >= len(text) {
		return false
	}
	return strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789}$", rune(text[i]))
}

// innerHost returns the host of a route for the ports that an environment allows:
// a regular expression that captures the port.
func innerHost(host string, values Values, allowed router.Ports) (string, error) {
	before, after, _ := strings.Cut(host, innerVar)
	for _, part := range []*string{&before, &after} {
		text, err := values.Expand(*part)
		if err != nil {
			return "", err
		}
		*part = regexp.QuoteMeta(text)
	}
	return "~^" + before + "(?<inner>" + portsExpr(allowed) + ")" + after + "$", nil
}

// Answers reports whether the route of an environment, whose values these are and
// which allows some ports inside, answers at the exact name host.
func (r Route) Answers(values Values, allowed router.Ports, host string) bool {
	before, after, inner := strings.Cut(r.Host, innerVar)
	before, err := values.Expand(before)
	if err != nil {
		return false
	}
	if !inner {
		return strings.EqualFold(before, host)
	}
	if after, err = values.Expand(after); err != nil || len(host) < len(before)+len(after) {
		return false
	}
	middle := len(host) - len(after)
	if !strings.EqualFold(host[:len(before)], before) || !strings.EqualFold(host[middle:], after) {
		return false
	}
	port, err := router.ParsePort(host[len(before):middle])
	return err == nil && allowed.Contains(port)
}

// portsExpr returns a regular expression of the decimal numbers in ports.
func portsExpr(ports router.Ports) string {
	var parts []string
	for _, r := range ports {
		parts = appendRange(parts, r.First, r.Last)
	}
	return strings.Join(parts, "|")
}

// appendRange appends expressions that match the numbers from first to last: it
// splits them where the number of equal leading digits changes.
func appendRange(parts []string, first, last int) []string {
	for first <= last {
		// The largest block of numbers that begins at first, fits, and differs in
		// its last digits only, of which it has all.
		size, digits := 1, 0
		for next := size * 10; first%next == 0 && first+next-1 <= last && first > 0; next *= 10 {
			size, digits = next, digits+1
		}
		// Several such blocks side by side differ in one digit more.
		n := 1
		for first/size%10+n <= 9 && first+(n+1)*size-1 <= last {
			n++
		}
		from := first / size
		expr := strconv.Itoa(from)
		if n > 1 {
			head := strconv.Itoa(from / 10)
			if from < 10 {
				head = ""
			}
			expr = head + "[" + strconv.Itoa(from%10) + "-" + strconv.Itoa(from%10+n-1) + "]"
		}
		parts = append(parts, expr+strings.Repeat("[0-9]", digits))
		first += n * size
	}
	return parts
}
