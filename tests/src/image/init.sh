#!/bin/busybox sh
# Process 1 of the test guest: drivers, then a shell by lines on the second serial port.
#
# Request:  ID BASE64(command)
# Answer:   ID STATUS BASE64(stdout and stderr)
# and one line "ready" when it starts, also after a reset.

/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout

for module in /modules/*.ko; do
    insmod "$module" || echo "init: $module does not load"
done
ip link set lo up

stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo ready >&3
while read -r id command <&3; do
    echo "$command" | base64 -d >/run/command
    sh /run/command >/run/output 2>&1 </dev/null
    echo "$id $? $(base64 -w 0 /run/output)" >&3
done
echo "init: the control channel is closed"
poweroff -f
