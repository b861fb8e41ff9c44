"""Phantom series in transfer syntaxes that no library here encodes: JPEG lossless, and ready-made HTJ2K frames."""

import base64
from pathlib import Path

import numpy as np
import pydicom
from phantom_series import phantom_hu, write_phantom_series
from pydicom import uid
from pydicom.encaps import encapsulate

HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
HTJ2K_SIZE = 24


def write_compressed_series(folder: Path, syntax: str, *, slices: int = 4, size: int = 32) -> np.ndarray:
    """Write a phantom series in any transfer syntax the bundle reads; returns its HU (H, W, D)."""
    if syntax not in (*HTJ2K, uid.JPEGLossless, uid.JPEGLosslessSV1):
        return write_phantom_series(folder, slices=slices, size=size, transfer_syntax=syntax)
    hu = phantom_hu(slices=slices, size=HTJ2K_SIZE if syntax in HTJ2K else size)
    write_phantom_series(folder, hu=hu, PixelRepresentation=0)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        words = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
        if syntax in HTJ2K:
            stream = base64.b85decode(HTJ2K_FRAMES[dataset.InstanceNumber - 1])
        else:
            stream = jpeg_lossless(words, predictor=1 if syntax == uid.JPEGLosslessSV1 else 4)
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return hu


def jpeg_lossless(words: np.ndarray, *, predictor: int) -> bytes:
    """One frame of 16 bits as a JPEG process 14 stream (ISO 10918-1 annex H), all 17 categories in 5-bit codes."""
    rows, columns = words.shape
    frame = words.astype(int)
    bits = []
    for y in range(rows):
        for x in range(columns):
            left, above = frame[y, x - 1], frame[y - 1, x]
            if y == 0:
                expected = left if x else 1 << 15
            elif x == 0:
                expected = above
            else:
                expected = left if predictor == 1 else left + above - frame[y - 1, x - 1]
            difference = (frame[y, x] - expected + (1 << 15)) % (1 << 16) - (1 << 15)
            category = 16 if difference == -(1 << 15) else int(abs(difference)).bit_length()
            bits.append(f"{category:05b}")
            if 0 < category < 16:
                bits.append(f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    table = bytes([0, *[0] * 4, 17, *[0] * 11, *range(17)])
    return (
        b"\xff\xd8"
        + _segment(0xC3, b"\x10" + size + b"\x01\x01\x11\x00")
        + _segment(0xC4, table)
        + _segment(0xDA, bytes([1, 1, 0, predictor, 0, 0]))
        + scan
        + b"\xff\xd9"
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


# Slices of phantom_hu(slices=4, size=24) + 1024, by htj2k_encode(reversible=True) of imagecodecs 2026.3.6 (OpenJPH).
HTJ2K_FRAMES = (
    (
        "|4;u>04YEK0000O0000O00000000000000O0000O0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
        "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00003Z2$rPlfVEbJ^Td+bO68r62JfxKmZc}umT5k080G=hjaig"
        "_yY%Y0KfnfKmZfK01|-a{Q{4407{|t0HQPi(gFu`0KfnioB#o7zyKDg7cnHH-"
        "0^Z!xUT#NCFUUky_f(YAfWdC|1M@3<5?6%<{^N6m;g;;C*_b|Y+`27Tln(>0^C9Yy_f*N02grp09~{I0e0XL2y=;65oOG)c7xe)C"
        "B(H=fF%-"
        "mLM+0CCpaNVpmIQgu@Imv3Ymoua_|5HKoX<|IEDZ~BRv4%sdAjU0V9)m;sjlQ^eZeR7sZXD$WE@qNlhMidL&e6Aj*sxj!#%L2=D<"
        "H%s|lw3_uH;0HBf~BN`yCGj@n50f$~3Zxm3nPT0fbp_7iTnGzPldIKRGsPJPIfP4`C0Em;Ah{U4+AQ7AZzyL3;AOIKE&;SeT5I}}"
        "L?1BZ6h9-thLzt(ahB<*KU>xagv&#UdtUf0p@d*k66~U-$2FO@po~T9xE~;Q8Pyq&mB{moYG-"
        "~6C3n%~}gbo~VjDCax9@Lw05hQ_=pmH0SLjb>Gc=v)1IB<p@B&SrfD1ikAY9?%0#Fj}(0c@ZVaKXod!huB$7<e!U*ipkk4GW1L2-"
        "pBY0`w3406_o^M>KnuSmGDKVPcgll2s^?KuV4kYbetoATUO;0!TD&cnkwRp{4DBUvl!!tiW(Fpa#Z)8z5((0>K3!7tpqm`a>Gs4r"
        ">Sp1{g5Qpv!|zBLqE6nt|i87U4G*l?kBO<Y{qIQLrGv@x>A4B+!XdV1!yPk%s&rooImqMGOZ610gpEp+xg1z`%ei$7nCY4>x82=|"
        "zJJOW2zr!2t*hEaW(WA;Aa(Iyl^rv52?`fDn%Xa>2Q*lr0n}AmTJ3Wg&U4MG6QmxjCepEg}RkVzdIDAQwEiB*U8dani|RsRP0y03"
        "b;p9qr#>JWa`h$|15_M}mbsxeyV+KyhV$tKfz#>L(NoigbA2)GGqgx*@s{gwP-"
        "Y0XB(;f8pRon+3!JK^o~WSPmRmVIz&Op@9wrsPGT~G+JlC;4&~kQMz5#F_d$`ffpdSK|q`t3^2eJbPPmzZk8^J9tKP<`VSZc2LpS"
        "NYb8lRZ)l1j5=cWp0zeXB0F;i8P>}A>L3c9(|Je"
    ),
    (
        "|4;u>04YEK0000O0000O00000000000000O0000O0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
        "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00003dH@0clfVEbo%{s{bO68r6F>kHKmZc}RQ>`7bO56K0*7<}"
        "4E_R#bO68r6F>kHzyK0}C!higbO4$G-~ggD06YPQbO68r7MuV9YCr%MprwNKAt9F#Wn{<I3`@)-"
        "0RFfDiSdq=I>jZhU?k}PD2vQu1Ae&xmDzc?=6RxJ<m!ps1qHZ+1A90CzyKF-"
        "003RY00DOZ3>;IC5J}8%e}Fp!DAp%Pov_(<;?zX5yQ%U0z+($D43K~e#YJR3HuwM<0Ffod!~_8V^F06rY|$u890>9Vzf}Ob4%3=s"
        "6B}U1$!d&-E{s;WAz;~r!0iGs%@3g#;WO2L!2kw;(MAwJVY&d=;>8C+A-"
        "YruPlzK6po4a}ruF6=KiDxnd#Y1CV&(vo2B8HAtf?_x61XJr0wJuR=%EBKGn)Xw057cI02kK~01NA&JfL7OeIiPs31qR$MZjbp!-"
        "FEI3mt%hk$HJ$lUk!#J30v(0EEZMKp+^I_XQhJ{FmS%0U`^_FUfJwcLpLJ;6MOpPyi55Cz+=g{UrxO5PC0&5NX0PzNoOjMiIjR3h"
        "q<{QDK6>m8TRMTz;egI-"
        "}4nph<@i34lWMKmke&@{j=l2nG!lKyV{~#0LNo0+;~AW2jaa2DDDk3JcLZk;u_g!2+a|g;a`AB1FK!uCW4aV2FTBWJ41&F$Yt$!$"
        "kxL#<sv($yR=7P56TQ2Jwk#VBU`dP=W+P++~<GVM2yun%0Gig{A?Ueu?7HDJ1{`h=l^OU9e_riziAwVwJE1@z4r9*!?-"
        "!fW0ye67yW}z@<ZyCsNyp@jnJ7NEm+!8?Za+0+y&73Jl1Of(ScQOyJ;z5F$_kh!Gkv0R{jR9fjfm(2Zgml(%RCrEsDc2N>riLlJ-"
        "lYXCsIl;nPU5+=aGa<l>%PeWXAqDf*Js%qHm(JQ=xOI-vAK#<DvdupE$Ee^oIF=@#x89etmQLugh5)lSAWr#Wi53DOHAVh`*TFbH"
        "qP6W1cc)kG}9tbVswK|1#^FThglz8VnhN3g*KuZUi`0kuQLxK*d+W_(gp4knGDO3vKp*M^`fg#L}ssIEL6B}+oHWCY<0tXcW4-"
        "Tl8g$$aDxURPfhJ*{p02%;<3Q|xY?GP)7jY9&YNhLBuk0eJXL=XY80{__"
    ),
    (
        "|4;u>04YEK0000O0000O00000000000000O0000O0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
        "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00003egFaglfVEbx%>qObO68r6F>kHKmZc}Uj70HbO31l0*7<}"
        "D*gh8bO68r6TkoyzyK0}DM<YS3v>W*f#3k5Gyp~chjakI02Z780cpSh7NEoG6CXHV_~fI^+zd<1BLM!m0FSX<S1J`wfB=Q)6h-"
        "DSfxnml<=r88CcH|DbNs7n1qHZ+19`XrzyKF-"
        "003RY00DOZ7(jEd5I7{8F69$Cfhc_MZuUshZ6>RJruR#cX!6bpPCOt38ip%JbZGDhrzA+MIKluxV>|#7D1mE9ABgb?&y~PA5bKJe"
        "H@1LPT^?wGW&~HeEsRNp!0!=gAPtfd*_3r&zyTJ3(MAwJVY&eBGDd|o4Q5=3;0qfVKt$UwJq6VPyzWsx`<`8mV&w%jegT6GO36@R"
        "F`kt05e;R^IYJ0v3!4DI057dz02kMA01NAoB(g+2lcJTxpSyx-MZpZ^csOJ>@^F#X2Tijh=AraP4+QfGrxuW$wBQ?f4|G=nm1QtN"
        "LJ3(6%I6_spY;9y4Up*I4B(k3Vc7tbd3;I+PM}=FgkcoAS!D&l>;z0u!a)*5xEj+M>Q2qLAQ5AM**~Mw@ypsHg@_xGfP?@-"
        "!j=RjE(9nsK*RwOJ~%9xFpv>p@BjeRD;F;@qB`)3XiowMDycsrflQTDi6)^bv@j;H0(v&8ri4^Pi=+DUXgsWA8MrXW`eUuBToUAg"
        "pbHIBP+$!dgv%qq8Xv*oC*%-"
        "|8dLruDi^pukRhjCohybGsTh)Bo{n+~Xt)AmWm3+Hs0aB(H$*9xVH*L@=pZQjGa>^UD@|Si$qxh_KtvBHh7dvx@Ol!!<L3kv5o93"
        "gO1Qy@06K_30|pAf;D{M$5J3P3)``;o0H^>p5YQmp&;?4+t4A2-"
        "LY0gVD_BMa*Ipt>Es}uYfLgQyCRkKZr5yfbmj|8DbWm4w;D!VPJdjXu1xp?{@;oHQ#ZuqU3VKFF3bjK8eO!pC+wsULfI!?fP{6?t"
        "*Of_w7XV)kl%7EnA8Z~{RZn0v9e}k5K=}~Rdm8mdkAl1huEFgJVTA<|AeV#N9@rUP3Kt;6K}ZNNpoU0}MKysEBSS2(oeV)m4T1qk"
        "i^Rl*#lnjbjbawn02&cYZ~>r*K$1yGD3Ck@KtQPiB&+gC8bL)MWDsGo0{__"
    ),
    (
        "|4;u>04YEK0000O0000O00000000000000O0000O0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
        "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00003YybiOlfVEbh5Q8vbO68r62JfxKmZc}rUD0a0M`5hhjajx"
        "_yY%Y0KfnfzyK4#022UDaO47ubO5@L@&KYV09^h82Xp|y02Z780ct=17N}p95&?~Oa7>VI{18jbLIZxd081Dj@o>p&aYl5~04R&h"
        "LjZr70IAZ6O~^uUs>V-a-"
        "17znxP$|KxB$Qa7jXapU9<oJcED<s18G)6F@rE_pQJng4x1P`Qp5pZ^aQ#B<t8HwFs<kyBmNV`9Fsu81^xgU$r1vHh6F$(JOEfYa"
        "_MRUKs{oJ4{`_skZ>0rx?lVsORe<=Hg2Yo0I`3A5m$^L4ndJX!T}eW14IHCfDyX@8kJ>($@wwBW-(I}6qT@Q-"
        "eE8bHj1KzbWYImN|D2Rr;r4KA(jM7vGBnn`G|rg7y$vXy8yrdFRS1H7uL`K3+pf*&@iM`vzPpO;0u2(cCIDE;N-"
        "%{Nr#4~u6z=uVGGaL!H^JP03e8X0pHt{3ptD^WZ~cgfIaSgBs8n#%6B9=1f+m(ISAEEh@dfj4QWQm$tW^=GZnha$T@%!jsS`hNG7"
        "$j>JtSjSXvZWf{jmM@%`{Y@Zh2#LjgqsPaP73h;ZV=fj|%tBoI)exW4fK0M><joUx)8#AvaqQUz#|2ojLtD@2$gOwce!zX5(qxU@"
        ">UI#@<%97BQ(mkT5|6d!14)YpP$L<D%tAub3OSg?6U7}FXp3<Vx8z#^y^WN}gPot1Hu(=rWq8jBIqq%3+tk-"
        ">5k6JjrK+FTMl1|tMOC~G2gp&Qq2flA=BflyU|4=)n`IX2c%WDNby*dfae_#_;BqV|<o@B%@G3>!Z9P(T96gA)}fZRG%*0Ghf1a>"
        "4UNiV-4|$s}k(N<yyG5GX+a9Jx87L{lUHFaov$NO5fI3sQI*Eqpr~-"
        "1~`3#6w&+OM0K7qRkbE5E~$>n^2fYFN4s4542VWB?N4sLGx@Y4qQx_T^mIX((2;46A&n2gaYQ+W$Pdp3RJ&Fu<r$Q@cH1j8?10fi"
        "nSqOgCLwJVW1S4gzjMhA)%e&zTMR{P`e=k4;nzA54wYfNXA9LMa>0D0VyhF=OaaCvi<-"
        "9Ap)Jqw34NGE+U8kgq0S92}lEjB_c?d<g?%)5wQaQ*#"
    ),
)
