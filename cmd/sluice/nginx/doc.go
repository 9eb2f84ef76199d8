// Package nginx turns configuration files of nginx into the keys of Sluice, and
// says of whatever it could not turn where it stands, why not, and what a person
// can do about it: every directive ends in a key, in a note, or among those that
// have no purpose any more.
//
// It reads as nginx does (ngx_conf_file.c): quotes, escapes, ${names}, includes
// with patterns, inheritance of directives from the blocks around. It is pure but
// for reading the files it is given, keeps nothing, and is safe for concurrent
// use. What files say is bounded in depth, size and number.
package nginx
