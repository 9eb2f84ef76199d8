package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity is a user as the kernel knows it.
type Identity struct {
	UID, GID int
	Groups   []int // supplementary
}

// Lookup finds a user by name or name:group, either of which may be a number.
func Lookup(name string) (Identity, error) {
	name, group, hasGroup := strings.Cut(name, ":")
	u, err := user.Lookup(name)
	if errors.As(err, new(user.UnknownUserError)) {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("there is no user %q on this machine; make one: useradd --system --home-dir /var/lib/sluice --shell /usr/sbin/nologin %s", name, name)
	}
	var id Identity
	if id.UID, err = strconv.Atoi(u.Uid); err != nil {
		return id, fmt.Errorf("user %q has the ID %q, which is no number", name, u.Uid)
	}
	gid := u.Gid
	if hasGroup {
		g, err := user.LookupGroup(group)
		if errors.As(err, new(user.UnknownGroupError)) {
			g, err = user.LookupGroupId(group)
		}
		if err != nil {
			return id, fmt.Errorf("there is no group %q on this machine", group)
		}
		gid = g.Gid
	}
	if id.GID, err = strconv.Atoi(gid); err != nil {
		return id, fmt.Errorf("the group of user %q has the ID %q, which is no number", name, gid)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return id, fmt.Errorf("list the groups of user %q: %w", name, err)
	}
	for _, g := range groups {
		if n, err := strconv.Atoi(g); err == nil {
			id.Groups = append(id.Groups, n)
		}
	}
	return id, nil
}

// become makes the calling thread the user that c names, with the capabilities
// to keep. Those survive the execution of the program as ambient ones.
func (c Config) become() error {
	var id Identity
	var err error
	change := false
	if c.User != "" {
		if id, err = Lookup(c.User); err != nil {
			return fmt.Errorf("user: %w", err)
		}
		change = id.UID != os.Getuid() || id.UID != os.Geteuid()
	}
	if change && os.Geteuid() != 0 {
		return fmt.Errorf("user: only root can become %s, and this process is the user %d; start it as root, or as that user", c.User, os.Geteuid())
	}
	if !change && os.Geteuid() == 0 {
		return nil
	}
	have, err := capabilities()
	if err != nil {
		return err
	}
	var keep uint64
	for _, n := range c.Capabilities {
		keep |= have & (1 << n)
	}
	if change {
		if err := switchUser(id, keep); err != nil {
			return fmt.Errorf("become the user %s: %w", c.User, err)
		}
	}
	return setCapabilities(keep)
}

// switchUser makes the calling thread another user, who keeps its permitted
// capabilities.
func switchUser(id Identity, keep uint64) error {
	for n := range 64 { // that nothing executed could have any other
		if keep&(1<<n) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); errors.Is(err, unix.EINVAL) {
				break // there are no more
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	groups := make([]uint32, 0, len(id.Groups)+1)
	for _, g := range append(id.Groups, id.GID) {
		groups = append(groups, uint32(g))
	}
	return setIDs(id, groups)
}
