package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WatchAddresses calls changed whenever an address or a link of this machine may
// have changed, until ctx ends; it then returns nil. Another error says that the
// kernel does not tell.
func WatchAddresses(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	defer file.Close()
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("listen for changes of addresses: %w", err)
	}
	defer context.AfterFunc(ctx, func() { file.Close() })()
	buf := make([]byte, 16<<10)
	for {
		_, err := file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // some were lost, which is a change too
			return fmt.Errorf("listen for changes of addresses: %w", err)
		}
		changed()
	}
}
