package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
)

// KeptAddresses returns the addresses that KeepAddresses wrote to the file at path;
// none where there is no such file, or none that can be read whole: they are found
// out again. A node begins with them: a new process that knew no address would take
// its own node out of DNS until reflectors answer, and for good where they do not.
func KeptAddresses(path string) []netip.Addr {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var kept []netip.Addr
	for _, line := range strings.Fields(string(text)) {
		a, err := netip.ParseAddr(line)
		if err != nil || !public(a, networkOf(a)) {
			return nil
		}
		kept = append(kept, a)
	}
	return kept
}

// KeepAddresses writes to the file at path where reflectors say that this node is,
// one address a line.
func KeepAddresses(path string, addresses []netip.Addr) error {
	var text strings.Builder
	for _, a := range addresses {
		fmt.Fprintln(&text, a)
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("keep the addresses of this node: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		err = fmt.Errorf("keep the addresses of this node: %w", err)
		if bad := os.Remove(fresh); bad != nil && !errors.Is(bad, fs.ErrNotExist) {
			err = errors.Join(err, bad)
		}
		return err
	}
	return nil
}

// networkOf returns over which network an address is found out.
func networkOf(a netip.Addr) string {
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}
