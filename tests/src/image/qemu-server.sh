# Builds QEMU's device server from Debian's source package in /src. Runs in a root of unpacked packages, none of which is
# configured: what their scripts would have set up and the build needs is made here.
set -e
cd /src
mkdir -p /etc/ssl/certs
cat /usr/share/ca-certificates/mozilla/*.crt > /etc/ssl/certs/ca-certificates.crt
# apt has checked its signature already.
dpkg-source --no-check --extract *.dsc qemu

# Its machine x-remote is there only where KVM is compiled in; it runs without. The old kind of rpath, which libraries go
# by as well.
mkdir build
cd build
../qemu/configure --cc=gcc --prefix=/usr --target-list=x86_64-softmmu --without-default-features \
    --enable-vfio-user-server --enable-multiprocess --enable-kvm --enable-tcg --enable-slirp \
    --disable-docs --disable-install-blobs --disable-werror --disable-debug-info \
    --extra-ldflags='-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib'
ninja --quiet qemu-system-x86_64
strip qemu-system-x86_64
./qemu-system-x86_64 -machine help | grep -q '^x-remote ' || {
    echo 'this QEMU has no machine x-remote' >&2
    exit 1
}
